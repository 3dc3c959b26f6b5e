"""One trial of a search, as Ray Tune runs it: a training that reports its metrics at each checkpoint."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import torch
from ray import tune

from jobs.checkpoints.format import load_model
from jobs.checkpoints.manager import CheckpointManager
from jobs.cluster.ray_cluster import Resources
from jobs.data.dataset import ShardedDataset
from jobs.device import tune_malloc
from jobs.errors import CorruptedError, TrainingError, UserError, first_line
from jobs.events import (
    CheckpointSaved,
    Event,
    MetricPoint,
    TrainingResumed,
    TrainingStopped,
    WorkerFailed,
    WorkersStarted,
)
from jobs.search.objectives import objective_metrics
from jobs.search.space import Values
from jobs.search.trials import Trial, TrialEvent, TrialReport, point_key
from jobs.train import run_training
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker
from jobs.training.worker import StopSignal

FAILED = "failed"  # key of the report of a trial that failed


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common.

    Attributes:
        make_job: Returns the training at a point of the space, or raises a UserError.
        trials: Trials of earlier commands by `Trial.key`.
        threads: Threads of torch.
        device: Device of the model, `cpu` or `cuda`.
        max_failures: Restarts of a trial whose process was lost.
        nested: Resources of the cluster if each trial is a Ray Train job of several workers, otherwise None.
        scratch: Folder for Ray's files of such jobs.
    """

    make_job: Callable[[Values], TrainJob]
    objectives: tuple[str, ...]
    trials: Mapping[str, Trial]
    threads: int
    device: str
    max_failures: int
    nested: Resources | None
    scratch: Path


def train_trial(config: dict[str, Any], plan: TrialPlan, event_queue: Any) -> None:
    """Train one point of the space to its end, or until the scheduler stops it by SystemExit from a report.

    The reports of an earlier command are repeated first. A trial that is done makes no others. `config` is the
    searcher's suggestion, and `event_queue` the handle of the search's `EventQueue` actor.

    Raises:
        UserError: The cause is shared by all trials, such as a full disk. Ray Tune retries the trial.
    """
    # Read by Ray Tune when it gives this process to another trial: a stopped trial finishes its checkpoint first.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    trial = plan.trials.get(point_key(config["values"]), Trial(config["number"], config["values"]))
    for step, metrics in trial.reports:
        tune.report({"step": step, **metrics})
    if trial.status == "failed":
        tune.report({FAILED: 1})
    if trial.is_done or ray.get(event_queue.stop_requested.remote()):
        return
    reporter = _TrialReporter(plan, event_queue, trial)
    reporter.put(WorkersStarted())
    try:
        reporter.train(plan.make_job(trial.values))
    except (StoppedError, KeyboardInterrupt):  # the search is stopped, and the trial has saved its checkpoint
        reporter.put_and_wait(TrainingStopped(reporter.last_step))
    except TrainingError as error:
        reporter.put_and_wait(WorkerFailed(str(error), trial_specific=True))
        tune.report({FAILED: 1})
    except UserError as error:
        reporter.put_and_wait(WorkerFailed(str(error), retryable=True, retry=error.retry))
        raise
    except Exception as error:
        reporter.put_and_wait(WorkerFailed(f"{type(error).__name__}: {first_line(error)}", trial_specific=True))
        tune.report({FAILED: 1})


class _TrialReporter:
    """Put the events of a trial's training into the queue, and report metrics to Ray Tune at each checkpoint."""

    def __init__(self, plan: TrialPlan, event_queue: Any, trial: Trial) -> None:
        self._plan, self._event_queue, self._trial = plan, event_queue, trial
        self.last_step = trial.step  # of the last report
        self._elbo: dict[int, float] = {}  # by step
        self._saved_steps: SimpleQueue[int] = SimpleQueue()  # steps of checkpoints that may not be reported
        self._stop_requested = StopSignal(event_queue)

    def train(self, job: TrainJob) -> None:
        """Train to the end and report each checkpoint; a last step without a report raises a TrainingError."""
        plan = self._plan
        if plan.nested is None:
            torch.set_num_threads(plan.threads)
            tune_malloc()
            if plan.device == "cuda":
                torch.set_float32_matmul_precision("high")

            def report_and_check() -> bool:  # between two steps
                self.report(job)
                return self._stop_requested()

            train_model(job, Worker(device=torch.device(plan.device), stop=report_and_check), self.put)
        else:

            def put_all(events: list[Event]) -> None:
                for event in events:
                    self.put(event)
                self.report(job)

            scratch = plan.scratch / f"trial-{self._trial.number}"
            # The end of this process ends the workers, and a shutdown of Ray here would end the trial itself.
            run_training(job, plan.nested, scratch, put_all, should_stop=self._stop_requested, shut_down=lambda: None)
        self.report(job)
        if self.last_step < job.train.steps:
            raise TrainingError("validation/elbo: not finite after the last step. Lower train.learning_rate.")

    def put(self, event: Event | TrialReport) -> Any:
        """Return Ray's reference to the call that puts an event into the queue. Any thread of the training calls it."""
        for point in event.history if isinstance(event, TrainingResumed) else [event]:
            if isinstance(point, MetricPoint) and "validation/elbo" in point.metrics:
                self._elbo[point.step] = point.metrics["validation/elbo"]
        reply = self._event_queue.put.remote(TrialEvent(self._trial.number, self._trial.values, event))
        # An earlier command may have been killed between the checkpoint that training resumes from and its report.
        if isinstance(event, CheckpointSaved) or (isinstance(event, TrainingResumed) and event.step):
            self._saved_steps.put(event.step)
        return reply

    def put_and_wait(self, event: Event | TrialReport) -> None:
        """Put an event and wait until it has arrived, with all before it."""
        ray.get(self.put(event))

    def report(self, job: TrainJob) -> None:
        """Report the metrics of the checkpoints saved since the last call. Called by one thread only."""
        while not self._saved_steps.empty():
            step = self._saved_steps.get()
            if step <= self.last_step or not math.isfinite(self._elbo.get(step, math.nan)):
                continue
            try:
                metrics = {"elbo": self._elbo[step], **self._other_objectives(job, step)}
            except CorruptedError:
                continue  # the workers of a nested training have replaced this checkpoint by newer ones
            self.last_step = step
            self.put_and_wait(TrialReport(step, metrics))
            tune.report({"step": step, **metrics})

    def _other_objectives(self, job: TrainJob, step: int) -> dict[str, float]:
        if set(self._plan.objectives) == {"elbo"}:
            return {}
        with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
            model = load_model(CheckpointManager(job.checkpoints).load(step, Path(folder)))
        validation = ShardedDataset(job.data, "validation")
        metrics = objective_metrics(model.to(self._plan.device), validation, self._plan.objectives, job.seed)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}
