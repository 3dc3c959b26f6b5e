"""The loop of a driver: poll the event queue, hand events on, and stop the work with a grace period."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from jobs.cli import defer_signals
from jobs.errors import UserError

POLL_SECONDS = 0.25


class Policy(Protocol):
    """What a driver concludes from events. While `is_running`, a worker can still save a checkpoint; a stop waits."""

    @property
    def is_running(self) -> bool: ...

    def decide(self, events: Sequence[Any]) -> UserError | None:
        """Take new events into account and return the error that ends the work, or None."""


class DriverLoop:
    """Run a blocking call of Ray in a thread, and handle the events of its workers in the caller's thread.

    Args:
        event_queue: Handle of the `EventQueue` actor of the workers.
        on_events: Called in the caller's thread with the events since its last call, several times a second.
        policy: Decides when the work has failed for good.
        grace_seconds: Longest wait for last checkpoints after a request to stop, in seconds.
        shut_down: Ends the workers of work that failed or was stopped, unless the end of this process does.
    """

    def __init__(
        self,
        event_queue: Any,
        on_events: Callable[[list[Any]], None],
        policy: Policy,
        *,
        grace_seconds: float,
        shut_down: Callable[[], Any] = ray.shutdown,
    ) -> None:
        self._event_queue, self._on_events, self._policy = event_queue, on_events, policy
        self._grace_seconds, self._shut_down = grace_seconds, shut_down
        self._seen = 0  # events handled

    def run(self, call: Callable[[], Any], should_stop: Callable[[], bool] = lambda: False) -> Future[Any]:
        """Return the completed future of `call`, which starts the workers and returns when they have ended.

        `should_stop` is polled as often as the events. True stops the work as Ctrl-C does.

        Raises:
            UserError: The policy gave up, or `on_events` raised the error.
            KeyboardInterrupt: The work was stopped: after last checkpoints, or at once on a second Ctrl-C.
        """
        future = _run_in_thread(call)
        try:
            try:
                failure = None
                while failure is None and not future.done():
                    time.sleep(POLL_SECONDS)
                    failure = self._poll()
                    if failure is None and should_stop():
                        raise KeyboardInterrupt
                failure = failure or self._poll()
            except (KeyboardInterrupt, UserError):
                with suppress(RayError):  # the terminal sends Ctrl-C to Ray's processes as well
                    self._stop(future)
                raise
            if failure is not None:
                raise failure
        except BaseException:
            self._shut_down()
            raise
        return future

    def _stop(self, future: Future[Any]) -> None:
        """Ask for last checkpoints and wait for them."""
        ray.get(self._event_queue.request_stop.remote())
        deadline = time.monotonic() + self._grace_seconds
        while self._policy.is_running and not future.done() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
            if self._poll() is not None:
                return

    def _poll(self) -> UserError | None:
        events: list[Any] = ray.get(self._event_queue.drain.remote(self._seen))
        with defer_signals():  # an interrupt in between would lose events or hand them on twice
            self._seen += len(events)
            failure = self._policy.decide(events)
            self._on_events(events)
        return failure


def ray_error_reason(error: BaseException) -> str:
    """Return the cause of an error of Ray, which is the last line of its message, after the worker's traceback."""
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__


def _run_in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Return the future of a call in a daemon thread, because a call that hangs must not block the exit."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="driver-call", daemon=True).start()
    return future
