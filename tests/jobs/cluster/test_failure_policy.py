"""The decision when a training has failed for good, as a table of events."""

from collections.abc import Sequence

import pytest

from jobs.cluster.failure_policy import FailurePolicy
from jobs.errors import TrainingError, UserError
from jobs.events import (
    CheckpointSaved,
    Event,
    MetricPoint,
    TrainingResumed,
    TrainingStopped,
    WorkerFailed,
    WorkersStarted,
)

START: list[Event] = [WorkersStarted(), TrainingResumed(0)]
LOST = WorkerFailed("the loss is lost", retryable=True)


@pytest.mark.parametrize(
    ("max_failures", "events", "fails"),
    [
        (0, START, False),
        (0, [*START, LOST], False),
        (0, [*START, *START], True),
        (1, [*START, *START], False),
        (1, [*START, *START, *START], True),
        (1, [*START, *START, CheckpointSaved(5), *START], False),
        (1, [*START, *START, CheckpointSaved(5), *START, *START], True),
        (0, [*START, CheckpointSaved(5), CheckpointSaved(10), MetricPoint(11, 0, {}), TrainingStopped(11)], False),
        (9, [*START, WorkerFailed("disk full")], True),
        (9, [WorkersStarted(), WorkerFailed("not finite", trial_specific=True)], True),
    ],
)
def test_failure_policy_decides_from_events(max_failures: int, events: Sequence[Event], fails: bool) -> None:
    """The decision is the same for events that arrive together and for events that arrive one by one."""
    assert (FailurePolicy(max_failures).decide(events) is not None) == fails
    policy = FailurePolicy(max_failures)
    assert any(policy.decide([event]) is not None for event in events) == fails


def test_failure_policy_error_types() -> None:
    """An error of the training itself is a TrainingError, a shared one is a UserError with the worker's message."""
    specific = FailurePolicy(0).decide([WorkerFailed("not finite", trial_specific=True)])
    shared = FailurePolicy(0).decide([WorkerFailed("disk full", retry=True)])
    assert isinstance(specific, TrainingError)
    assert isinstance(shared, UserError)
    assert not isinstance(shared, TrainingError)
    assert (str(specific), str(shared)) == ("not finite", "disk full")
    assert (specific.retry, shared.retry) == (False, True)


def test_failure_policy_names_first_reason() -> None:
    """The failures of other workers follow from the first, and a new worker group starts without a reason."""
    policy = FailurePolicy(1)
    assert policy.decide([*START, WorkerFailed("old", retryable=True), *START, LOST, WorkerFailed("x", True)]) is None
    error = policy.decide(START)
    assert isinstance(error, TrainingError)
    assert error.retry
    assert str(error).startswith("train.max_failures=1: ")
    assert "2 times" in str(error)
    assert "the loss is lost" in str(error)


@pytest.mark.parametrize(
    ("events", "is_running"),
    [
        ([WorkersStarted()], False),
        (START, True),
        ([*START, TrainingStopped(3)], False),
        ([*START, TrainingStopped(3), *START], True),
        ([*START, LOST], True),
        ([*START, LOST, WorkersStarted()], False),
    ],
)
def test_failure_policy_knows_whether_workers_run(events: Sequence[Event], is_running: bool) -> None:
    """A stop waits for a checkpoint only while the workers train."""
    policy = FailurePolicy(9)
    policy.decide(events)
    assert policy.is_running == is_running
