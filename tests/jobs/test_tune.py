"""What the driver of a search concludes from its trials, without Ray."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import tune
from jobs.events import CheckpointSaved, Event, TrainingStopped, WorkersStarted
from jobs.search.trials import TrialEvent, TrialReport, TrialResult
from jobs.tune import RunningTrials, TrialResultCallback


@pytest.mark.parametrize(
    ("events", "numbers"),
    [
        ([(0, WorkersStarted())], {0}),
        ([(0, WorkersStarted()), (1, TrialReport(3, {}))], {0, 1}),
        ([(0, WorkersStarted()), (1, WorkersStarted()), (0, TrialResult("finished"))], {1}),
        ([(0, WorkersStarted()), (0, TrainingStopped(4))], set()),
        ([(0, TrainingStopped(4)), (0, WorkersStarted()), (0, CheckpointSaved(5))], {0}),
    ],
)
def test_running_trials_follow_events(
    events: Sequence[tuple[int, Event | TrialReport | TrialResult]], numbers: set[int]
) -> None:
    """A trial runs from its first event to its result or its last checkpoint."""
    policy = RunningTrials()
    policy.decide([TrialEvent(number, {}, event) for number, event in events])
    assert policy.numbers == numbers
    assert policy.is_running == bool(numbers)


@pytest.mark.parametrize(
    ("last_result", "stop_requested", "status"),
    [
        ({"step": 9}, False, "finished"),
        ({"step": 9}, True, "finished"),
        ({"step": 6}, False, "stopped"),
        ({"step": 6}, True, None),  # the search is stopped, and the next command continues the trial
        ({"step": 6, "failed": 1}, True, "failed"),
        ({}, False, None),
        (None, False, None),
    ],
)
def test_trial_result_callback_tells_status(
    monkeypatch: pytest.MonkeyPatch, last_result: dict[str, int] | None, stop_requested: bool, status: str | None
) -> None:
    """The status follows from the last report of the trial."""
    monkeypatch.setattr(tune.ray, "get", lambda reply: reply)
    events: list[TrialEvent] = []
    queue = SimpleNamespace(
        put=SimpleNamespace(remote=events.append), stop_requested=SimpleNamespace(remote=lambda: stop_requested)
    )
    trial: Any = SimpleNamespace(last_result=last_result, config={"number": 3, "values": {"seed": 1}})
    TrialResultCallback(queue, steps=9).on_trial_complete(0, [], trial)
    expected = [] if status is None else [TrialEvent(3, {"seed": 1}, TrialResult(status))]  # type: ignore[arg-type]
    assert events == expected


def test_trial_result_callback_lost_process_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial whose process was lost too often has failed, and the reason names the setting."""
    monkeypatch.setattr(tune.ray, "get", lambda reply: reply)
    events: list[TrialEvent] = []
    queue = SimpleNamespace(put=SimpleNamespace(remote=events.append))
    trial: Any = SimpleNamespace(last_result={}, config={"number": 3, "values": {}})
    TrialResultCallback(queue, steps=9).on_trial_error(0, [], trial)
    (event,) = events
    assert isinstance(event.event, TrialResult)
    assert event.event.status == "failed"
    assert "train.max_failures" in event.event.reason
