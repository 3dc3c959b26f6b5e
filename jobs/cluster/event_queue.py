"""The queue of events from training workers to the driver, on whichever nodes they are.

Sending an event is one asynchronous actor call, so training never waits for the terminal or the tracking server.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.events import Event, WorkersStarted


@ray.remote(num_cpus=0)
class EventQueue:
    """Events in the order of their arrival, and the request to stop training."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._num_drained = 0
        self._stop_requested = False

    def put(self, event: Event) -> None:
        """Append an event. The start of a worker group withdraws an earlier request to stop."""
        if isinstance(event, WorkersStarted):
            self._stop_requested = False
        self._events.append(event)

    def drain(self, seen: int) -> list[Event]:
        """Return all events but the first `seen`, which the caller has handled and which are removed.

        The next call acknowledges the returned events, so that an answer lost on its way is sent again.
        """
        self._events = self._events[seen - self._num_drained :]
        self._num_drained = seen
        return self._events

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and stop."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Return whether the workers are asked to stop."""
        return self._stop_requested


def make_event_queue() -> Any:
    """Return the handle of a new queue on the caller's node, because the training ends with that node in any case."""
    local = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return EventQueue.options(scheduling_strategy=local).remote()  # type: ignore[attr-defined]
