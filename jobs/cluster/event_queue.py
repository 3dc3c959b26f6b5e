"""Where a training worker posts what happens and the driver reads it, on whichever nodes the two are.

Posting is one asynchronous actor call, so training never waits for the screen or the tracking server.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.events import Event, WorkersStarted


@ray.remote(num_cpus=0)
class EventQueue:
    """A list of messages that grows at one end, and a flag that says whether training is to stop."""

    def __init__(self) -> None:
        self._messages: list[Event] = []
        self._first = 0  # place of the first message that is kept
        self._stopping = False

    def post(self, message: Event) -> None:
        """Append a message. A worker group that begins has not been asked to stop."""
        if isinstance(message, WorkersStarted):
            self._stopping = False
        self._messages.append(message)

    def take(self, seen: int) -> list[Event]:
        """All messages but the first `seen`, which are forgotten: whoever takes has handled them."""
        self._messages = self._messages[seen - self._first :]
        self._first = seen
        return self._messages

    def stop(self) -> None:
        """Ask the workers to make a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they are asked to."""
        return self._stopping


def make_event_queue() -> Any:
    """A board on the node of the caller, whose end is the end of the training anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return EventQueue.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
