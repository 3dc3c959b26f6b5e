"""One trial of a search by itself: its reports, its end, and how another command continues it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_job import small_job

from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import CorruptedError, TrainingError, UnavailableError, UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingStopped, WorkerFailed
from jobs.search import trainable
from jobs.search.space import Values
from jobs.search.trainable import TrialPlan, train_trial
from jobs.search.trials import Trial, TrialEvent, TrialReport
from jobs.training.state import TrainJob
from vlae.config import VlaeConfig

VALUES: Values = {"train.learning_rate": 0.003}


@dataclass
class FakeRay:
    """Stands for Ray: records events and reports, and stops the trial."""

    events: list[Event | TrialReport] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    stop_requested: bool = False
    stop_at: int | None = None  # step at whose report the scheduler stops the trial

    @property
    def event_queue(self) -> Any:
        def put(event: TrialEvent) -> None:
            assert (event.number, event.values) == (7, VALUES)
            self.events.append(event.event)

        return SimpleNamespace(
            put=SimpleNamespace(remote=put), stop_requested=SimpleNamespace(remote=lambda: self.stop_requested)
        )

    def report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)
        if self.stop_at is not None and metrics["step"] == self.stop_at:
            raise SystemExit

    def events_of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def run(self, make_job: Callable[..., TrainJob], *trials: Trial, objectives: tuple[str, ...] = ("elbo",)) -> None:
        """Run trial 7 of a search with these trials of earlier commands."""
        records = {trial.key: trial for trial in trials}
        plan = TrialPlan(make_job, objectives, records, 1, "cpu", 3, None, Path("unused"))
        train_trial({"number": 7, "values": VALUES}, plan, self.event_queue)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(trainable.tune, "report", fake.report)
    monkeypatch.setattr(trainable.ray, "get", lambda reply: reply)
    monkeypatch.setattr("jobs.training.worker.ray.get", lambda reply: reply)
    monkeypatch.setattr("jobs.training.worker.ray.wait", lambda replies, timeout: (replies, []))
    return fake


def test_train_trial_reports_each_checkpoint_once(fake_ray: FakeRay, digit_dataset: Path, tmp_path: Path) -> None:
    """Reports have the ELBO of the learning curve, and follow the checkpoint that they belong to."""
    job = small_job(digit_dataset, tmp_path)
    fake_ray.run(lambda values: job, objectives=("elbo", "rung_compactness", "mig_sup"))
    assert [report["step"] for report in fake_ray.reports] == [3, 6, 9, 12]
    curve = {
        point.step: point.metrics["validation/elbo"]
        for point in fake_ray.events_of(MetricPoint)
        if "validation/elbo" in point.metrics
    }
    assert {report["step"]: report["elbo"] for report in fake_ray.reports} == curve
    assert all("mig_sup" in report for report in fake_ray.reports)
    assert all(math.isfinite(value) for report in fake_ray.reports for value in report.values())
    assert [report.step for report in fake_ray.events_of(TrialReport)] == [3, 6, 9, 12]
    saved_or_reported = [event for event in fake_ray.events if isinstance(event, CheckpointSaved | TrialReport)]
    assert isinstance(saved_or_reported[0], CheckpointSaved)  # a kill cannot take back what is reported


def test_train_trial_stopped_early_can_be_continued(fake_ray: FakeRay, digit_dataset: Path, tmp_path: Path) -> None:
    """A trial that the scheduler stops keeps its checkpoint, from which it resumes."""
    job, fake_ray.stop_at = small_job(digit_dataset, tmp_path / "stopped"), 6
    with pytest.raises(SystemExit):
        fake_ray.run(lambda values: job)
    steps = CheckpointManager(job.checkpoints).steps()
    assert 6 in steps
    assert steps[-1] < 12
    fake_ray.events, fake_ray.reports, fake_ray.stop_at = [], [], None
    fake_ray.run(lambda values: job)
    (resumed,) = fake_ray.events_of(TrainingResumed)
    assert resumed.step == steps[-1]
    assert fake_ray.reports[-1]["step"] == 12


def test_train_trial_repeats_earlier_reports_first(fake_ray: FakeRay, digit_dataset: Path, tmp_path: Path) -> None:
    """Nothing is computed again. Of checkpoints that were not reported before a kill, the last is reported."""
    job = small_job(digit_dataset, tmp_path)
    fake_ray.run(lambda values: job)
    first, fake_ray.reports = fake_ray.reports, []
    half = Trial(7, VALUES, reports=[(report["step"], {"elbo": report["elbo"]}) for report in first[:2]])
    fake_ray.run(lambda values: job, half)
    assert fake_ray.reports == [*first[:2], first[-1]]


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_train_trial_done_before_is_not_trained(fake_ray: FakeRay, status: Any) -> None:
    """A trial that an earlier command completed only repeats its reports."""
    trial = Trial(7, VALUES, status, reports=[(3, {"elbo": -5.0})])
    fake_ray.run(lambda values: pytest.fail("it was trained again"), trial)
    assert fake_ray.reports == [{"step": 3, "elbo": -5.0}, *([{"failed": 1}] if status == "failed" else [])]
    assert fake_ray.events == []


def test_train_trial_stopped_search_starts_nothing(fake_ray: FakeRay) -> None:
    """A trial that starts after the request to stop does nothing."""
    fake_ray.stop_requested = True
    fake_ray.run(lambda values: pytest.fail("it was started"))
    assert fake_ray.reports == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TrainingError("too many steps"), "too many steps"),
        (ValueError("a\nb"), "ValueError: a"),
        (KeyError(), "KeyError: KeyError"),
    ],
)
def test_train_trial_own_error_is_reported(fake_ray: FakeRay, error: Exception, text: str) -> None:
    """An error that is specific to the trial fails it, with the reason."""

    def make_job(values: Values) -> TrainJob:
        raise error

    fake_ray.run(make_job)
    assert fake_ray.events_of(WorkerFailed) == [WorkerFailed(text, trial_specific=True)]
    assert fake_ray.reports == [{"failed": 1}]


@pytest.mark.parametrize(
    "error", [UnavailableError("S3 does not answer"), UserError("the disk is full"), CorruptedError("gone")]
)
def test_train_trial_shared_error_is_left_to_ray(fake_ray: FakeRay, error: UserError) -> None:
    """An error that all trials share is raised, so that Ray Tune retries the trial."""

    def make_job(values: Values) -> TrainJob:
        raise error

    with pytest.raises(type(error)):
        fake_ray.run(make_job)
    assert fake_ray.reports == []
    assert fake_ray.events_of(WorkerFailed) == [WorkerFailed(str(error), retryable=True, retry=error.retry)]


def test_train_trial_stop_saves_checkpoint(fake_ray: FakeRay, digit_dataset: Path, tmp_path: Path) -> None:
    """A trial that is asked to stop says so after its last checkpoint, and reports nothing."""
    job = small_job(digit_dataset, tmp_path, steps=10**5, checkpoint_every=10**5)

    def make_job(values: Values) -> TrainJob:
        fake_ray.stop_requested = True
        return job

    fake_ray.run(make_job)
    assert CheckpointManager(job.checkpoints).steps() == [fake_ray.events_of(TrainingStopped)[0].step]
    assert fake_ray.reports == []


def test_train_trial_nonfinite_elbo_is_failure(fake_ray: FakeRay, digit_dataset: Path, tmp_path: Path) -> None:
    """A trial whose last step has no finite ELBO has failed."""
    job = small_job(digit_dataset, tmp_path, max_nonfinite_steps=100)
    model = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=(16,), likelihood="gaussian", likelihood_scale=1e-30)
    fake_ray.run(lambda values: replace(job, model=model))
    assert fake_ray.reports == [{"failed": 1}]
    (failure,) = fake_ray.events_of(WorkerFailed)
    assert "validation/elbo" in failure.reason
    assert failure.trial_specific
