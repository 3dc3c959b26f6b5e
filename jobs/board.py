"""Where a training worker posts what happens and the driver reads it, on whichever nodes the two are.

Posting is one asynchronous actor call, so training never waits for the screen or the tracking server.
"""

from dataclasses import dataclass, field

import ray


@dataclass(frozen=True)
class Point:
    """Metrics of one step; the time is fixed here, so that sending a point twice changes nothing."""

    step: int
    time_ms: int  # since the epoch
    metrics: dict[str, float]


@dataclass(frozen=True)
class Started:
    """A worker group begins, or begins again, after `step` steps whose curve is `history`."""

    step: int
    history: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Committed:
    """The checkpoint of `step` is in the store: no earlier step will ever be computed again."""

    step: int


Message = Point | Started | Committed


@ray.remote(num_cpus=0)
class Board:
    """A list of messages that grows at one end."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, message: Message) -> None:
        """Append a message."""
        self._messages.append(message)

    def take(self) -> list[Message]:
        """All messages since the last call."""
        taken, self._messages = self._messages, []
        return taken
