"""The learning curve of a resumed training continues that of the training before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import small_job
from helpers.worker_threads import run_threads, worker_training

from jobs.checkpoints.format import Restored
from jobs.events import MetricPoint
from jobs.training.metrics import MetricAccumulator, StepMetrics
from jobs.training.monitor import TrainingMonitor
from jobs.training.state import Training, TrainJob


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "none")


def resumed(job: TrainJob, rank: int, world_size: int, restored: Restored) -> Training:
    return replace(worker_training(job, rank, world_size), restored=restored)


def next_point(training: Training, loss: float) -> dict[str, float]:
    """Return the point after one step of this loss, without the speed."""
    job = training.job
    monitor = TrainingMonitor(job.train, job.objective, job.progressive, [0.0, 0.0], lambda event: None)
    accumulator = MetricAccumulator(training, monitor, lambda event: None)
    weighted = torch.tensor([loss, loss, 1.0, 0.0, 0.0, 0.0]) * training.metric_weight
    accumulator.add(StepMetrics.unpack(weighted), training.step + 1, 16, log=True)
    return {name: value for name, value in accumulator.history[-1].metrics.items() if "second" not in name}


def test_skipped_steps_are_counted_on_after_a_resume(job: TrainJob) -> None:
    history = [MetricPoint(2, 0, {"train/skipped_steps": 2.0}), MetricPoint(3, 0, {"validation/elbo": -1.0})]
    assert next_point(resumed(job, 0, 1, Restored(3, history, [])), 5.0)["train/skipped_steps"] == 2
    pending = [[5.0, 5.0, 1.0, 1.0, 0.0, 0.0]]  # a skipped step since the last point
    assert next_point(resumed(job, 0, 1, Restored(3, history, pending)), 5.0)["train/skipped_steps"] == 3


def test_pending_steps_of_several_workers_count_once(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps since the last point are means over all workers, and each worker restores them."""
    restored = Restored(1, [], [[3.0, 3.0, 1.0, 0.0, 0.0, 0.0]])
    trainings = [resumed(job, rank, 2, restored) for rank in range(2)]
    expected = next_point(resumed(job, 0, 1, restored), 5.0)
    assert expected["train/loss"] == 4
    assert run_threads(trainings, lambda training: next_point(training, 5.0), monkeypatch) == [expected] * 2
