"""Where a training worker posts what happens and the driver reads it, on whichever nodes the two are.

Posting is one asynchronous actor call, so training never waits for the screen or the tracking server.
"""

import ray

from jobs.messages import Message


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
