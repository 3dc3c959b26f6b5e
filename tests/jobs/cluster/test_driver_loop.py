"""The driver's loop and the event queue, without a cluster."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cluster import driver_loop
from jobs.cluster.driver_loop import DriverLoop, ray_error_reason
from jobs.cluster.event_queue import EventQueue
from jobs.cluster.failure_policy import FailurePolicy
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, TrainingResumed, TrainingStopped, WorkerFailed, WorkersStarted


@pytest.fixture
def event_queue(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An event queue in this process, with the interface of a Ray actor."""
    monkeypatch.setattr(driver_loop, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(driver_loop.ray, "get", lambda reply: reply)
    queue = EventQueue.__ray_metadata__.modified_class()
    methods = ("put", "drain", "request_stop", "stop_requested")
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(queue, name)) for name in methods})


class Driver:
    """A driver that records what its loop does."""

    def __init__(self, event_queue: Any, on_events: Callable[[list[Event]], None] = lambda events: None) -> None:
        self.events: list[Event] = []
        self.num_shutdowns = 0

        def record(events: list[Event]) -> None:
            self.events += events
            on_events(events)

        def shut_down() -> None:
            self.num_shutdowns += 1

        policy = FailurePolicy(max_failures=0)
        self.loop = DriverLoop(event_queue, record, policy, grace_seconds=5, shut_down=shut_down)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends a call that would last for ever."""
    event = threading.Event()
    yield event
    event.set()


def test_event_queue_keeps_unhandled_events(event_queue: Any) -> None:
    """A repeated drain returns events again whose first answer was lost."""
    events: list[Event] = [WorkersStarted(), CheckpointSaved(1), CheckpointSaved(2)]
    for event in events[:2]:
        event_queue.put.remote(event)
    assert event_queue.drain.remote(0) == events[:2]
    event_queue.put.remote(events[2])
    assert event_queue.drain.remote(0) == events
    assert event_queue.drain.remote(2) == events[2:]
    assert event_queue.drain.remote(3) == []


def test_event_queue_new_workers_clear_stop(event_queue: Any) -> None:
    """A worker group that starts after a request to stop trains."""
    event_queue.request_stop.remote()
    event_queue.put.remote(CheckpointSaved(1))
    assert event_queue.stop_requested.remote()
    event_queue.put.remote(WorkersStarted())
    assert not event_queue.stop_requested.remote()


def test_driver_loop_hands_each_event_on_once(event_queue: Any) -> None:
    """Events that are put before the call ends arrive as well."""
    expected = [CheckpointSaved(step) for step in range(200)]

    def call() -> str:
        for event in expected:
            event_queue.put.remote(event)
        return "result"

    driver = Driver(event_queue)
    assert driver.loop.run(call).result() == "result"
    assert driver.events == expected
    assert driver.num_shutdowns == 0


def test_driver_loop_returns_exception_of_call(event_queue: Any) -> None:
    """An exception of the call is in the future, and nothing is shut down."""
    driver = Driver(event_queue)
    error = driver.loop.run(lambda: 1 // 0).exception()
    assert isinstance(error, ZeroDivisionError)
    assert driver.num_shutdowns == 0


def test_driver_loop_stops_after_last_checkpoint(event_queue: Any, release: threading.Event) -> None:
    """A stop asks the workers, and waits until they have saved a checkpoint."""

    def call() -> None:
        event_queue.put.remote(WorkersStarted())
        event_queue.put.remote(TrainingResumed(0))
        while not event_queue.stop_requested.remote():
            release.wait(0.01)
        event_queue.put.remote(CheckpointSaved(7))
        event_queue.put.remote(TrainingStopped(7))
        release.wait(60)

    driver = Driver(event_queue)
    with pytest.raises(KeyboardInterrupt):
        driver.loop.run(call, should_stop=lambda: TrainingResumed(0) in driver.events)
    assert driver.events[-2:] == [CheckpointSaved(7), TrainingStopped(7)]
    assert driver.num_shutdowns == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_driver_loop_second_signal_ends_at_once(event_queue: Any, release: threading.Event, number: int) -> None:
    """Signals wait until events are handled, and a second one does not wait for the workers' checkpoint."""
    handled: list[int] = []

    def interrupted(events: list[Event]) -> None:
        os.kill(os.getpid(), number)
        handled.append(len(events))

    driver = Driver(event_queue, interrupted)
    event_queue.put.remote(WorkersStarted())
    event_queue.put.remote(TrainingResumed(0))
    handler = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            driver.loop.run(lambda: release.wait(60))
    finally:
        signal.signal(number, handler)
    assert handled == [2, 0]  # each event once, although a signal came meanwhile
    assert driver.events == [WorkersStarted(), TrainingResumed(0)]
    assert driver.num_shutdowns == 1


def test_driver_loop_policy_failure_ends_at_once(event_queue: Any, release: threading.Event) -> None:
    """Workers that failed for good are not asked for a checkpoint."""
    driver = Driver(event_queue)
    event_queue.put.remote(TrainingResumed(0))
    event_queue.put.remote(WorkerFailed("disk full"))
    with pytest.raises(UserError, match="disk full"):
        driver.loop.run(lambda: release.wait(60))
    assert not event_queue.stop_requested.remote()
    assert driver.num_shutdowns == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("Traceback\n  line 3\nKeyError: x\n"), "KeyError: x"), (ValueError(""), "ValueError")],
)
def test_ray_error_reason_is_last_line(error: Exception, reason: str) -> None:
    """Ray puts the worker's traceback before the cause."""
    assert ray_error_reason(error) == reason
