"""One trial of a search by itself: what it reports and when, how it ends, and how another command takes it up."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_job import small_job

from jobs.checkpoints.manager import Checkpoints
from jobs.errors import CorruptedError, TrainingError, UnavailableError, UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingStopped, WorkerFailed
from jobs.search import trainable as trial
from jobs.search.config import Objective
from jobs.search.trainable import TrialPlan, run_trial
from jobs.search.trials import Trial, TrialReport, point_key
from jobs.training.state import TrainJob
from vlae.config import VlaeConfig

VALUES: dict[str, str | int | float] = {"train.learning_rate": 0.003}


@dataclass
class Stage:
    """Stands for Ray: what the trial posts and reports, and when it is told to stop."""

    told: list[Event] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    stopping: bool = False
    stop_at: int | None = None  # step at whose report the scheduler stops the trial

    @property
    def board(self) -> Any:
        def post(told: Any) -> None:
            assert (told.number, told.values) == (7, VALUES)
            self.told.append(told.message)

        return SimpleNamespace(
            post=SimpleNamespace(remote=post), stopping=SimpleNamespace(remote=lambda: self.stopping)
        )

    def report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)
        if self.stop_at is not None and metrics["step"] == self.stop_at:
            raise SystemExit

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.told if isinstance(message, kind)]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage()
    monkeypatch.setattr(trial.tune, "report", found.report)
    monkeypatch.setattr(trial.ray, "get", lambda reply: reply)
    monkeypatch.setattr("jobs.training.worker.ray.get", lambda reply: reply)
    monkeypatch.setattr("jobs.training.worker.ray.wait", lambda replies, timeout: (replies, []))
    return found


def plan(make_job: Callable[..., TrainJob], *known: Trial, objectives: tuple[Objective, ...] = ("elbo",)) -> TrialPlan:
    return TrialPlan(make_job, objectives, {one.key: one for one in known}, 1, "cpu", 3, None, Path("none"))


def go(stage: Stage, found: TrialPlan) -> None:
    run_trial({"number": 7, "values": VALUES}, found, stage.board)


def test_every_checkpoint_is_reported_once_with_the_score_of_the_curve(
    stage: Stage, digit_dataset: Path, tmp_path: Path
) -> None:
    job = small_job(digit_dataset, tmp_path)
    go(stage, plan(lambda values: job, objectives=("elbo", "rung_compactness", "mig_sup")))
    assert [report["step"] for report in stage.reports] == [3, 6, 9, 12]
    curve = {
        point.step: point.metrics["validation/elbo"]
        for point in stage.of(MetricPoint)
        if "validation/elbo" in point.metrics
    }
    assert {report["step"]: report["elbo"] for report in stage.reports} == curve
    assert all("mig_sup" in report for report in stage.reports)
    assert all(math.isfinite(score) for report in stage.reports for score in report.values())
    assert [one.step for one in stage.of(TrialReport)] == [3, 6, 9, 12]
    places = [index for index, one in enumerate(stage.told) if isinstance(one, CheckpointSaved | TrialReport)]
    kinds = [type(stage.told[place]) for place in places]
    assert kinds[0] is CheckpointSaved  # nothing is reported that a kill could take back


def test_a_trial_that_the_scheduler_stops_keeps_its_checkpoint_and_can_go_on(
    stage: Stage, digit_dataset: Path, tmp_path: Path
) -> None:
    job, stage.stop_at = small_job(digit_dataset, tmp_path / "stopped"), 6
    with pytest.raises(SystemExit):
        go(stage, plan(lambda values: job))
    kept = Checkpoints(job.checkpoints).steps()
    assert 6 in kept
    assert kept[-1] < 12
    whole = Stage()
    stage.told, stage.reports, stage.stop_at = whole.told, whole.reports, None
    go(stage, plan(lambda values: job))
    (started,) = stage.of(TrainingResumed)
    assert started.step == kept[-1]
    assert stage.reports[-1]["step"] == 12


def test_what_an_earlier_command_knows_is_reported_first_and_not_computed_again(
    stage: Stage, digit_dataset: Path, tmp_path: Path
) -> None:
    job = small_job(digit_dataset, tmp_path)
    go(stage, plan(lambda values: job))
    first, stage.reports = stage.reports, []
    half = Trial(7, VALUES, reports=[(report["step"], {"elbo": report["elbo"]}) for report in first[:2]])
    go(stage, plan(lambda values: job, half))
    assert stage.reports == [*first[:2], first[-1]]  # of the checkpoints between, killed before their reports, the last


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_trial_that_has_ended_trains_no_more(stage: Stage, status: Any) -> None:
    known = Trial(7, VALUES, status, reports=[(3, {"elbo": -5.0})])
    go(stage, plan(lambda values: pytest.fail("it was trained again"), known))
    assert stage.reports == [{"step": 3, "elbo": -5.0}, *([{"failed": 1}] if status == "failed" else [])]
    assert stage.told == []
    assert point_key(VALUES) == known.key


def test_a_search_that_is_to_stop_begins_no_trial(stage: Stage) -> None:
    stage.stopping = True
    go(stage, plan(lambda values: pytest.fail("it was begun")))
    assert stage.reports == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TrainingError("too many steps"), "too many steps"),
        (ValueError("a\nb"), "ValueError: a"),
        (KeyError(), "KeyError: "),
    ],
)
def test_a_broken_trial_says_why(stage: Stage, error: Exception, text: str) -> None:
    def broken(values: object) -> TrainJob:
        raise error

    go(stage, plan(broken))
    assert stage.of(WorkerFailed) == [WorkerFailed(text, trial_specific=True)]
    assert stage.reports == [{"failed": 1}]


@pytest.mark.parametrize(
    "error", [UnavailableError("S3 does not answer"), UserError("the disk is full"), CorruptedError("gone")]
)
def test_what_is_not_its_own_trouble_is_for_ray_to_try_again(stage: Stage, error: UserError) -> None:
    def away(values: object) -> TrainJob:
        raise error

    with pytest.raises(type(error)):
        go(stage, plan(away))
    assert stage.reports == []
    assert stage.of(WorkerFailed) == [WorkerFailed(str(error), retryable=True)]


def test_a_trial_that_is_told_to_stop_says_so_when_it_has_its_checkpoint(
    stage: Stage, digit_dataset: Path, tmp_path: Path
) -> None:
    job = small_job(digit_dataset, tmp_path, steps=10**5, checkpoint_every=10**5)

    def stop_soon(values: object) -> TrainJob:
        stage.stopping = True
        return job

    go(stage, plan(stop_soon))
    assert stage.of(TrainingStopped)
    assert Checkpoints(job.checkpoints).steps() == [stage.of(TrainingStopped)[0].step]
    assert stage.reports == []


def test_a_score_that_is_not_finite_is_a_failure(stage: Stage, digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path, max_nonfinite_steps=100)
    model = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=(16,), likelihood="gaussian", likelihood_scale=1e-30)
    go(stage, plan(lambda values: replace(job, model=model)))
    assert stage.reports == [{"failed": 1}]
    assert [one.reason for one in stage.of(WorkerFailed)] == [
        "the ELBO of the validation images is not finite after the last step"
    ]
