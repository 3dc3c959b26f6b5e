"""One trial of a search, as Ray Tune runs it: a training that reports between steps, and goes on where it was."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
import torch
from ray import tune

from jobs.checkpoints.format import load_model
from jobs.checkpoints.manager import Checkpoints
from jobs.cluster.ray_cluster import Resources
from jobs.data.dataset import ShardedDataset
from jobs.device import tune_malloc
from jobs.errors import CorruptedError, TrainingError, UserError
from jobs.events import (
    CheckpointSaved,
    Event,
    MetricPoint,
    TrainingResumed,
    TrainingStopped,
    WorkerFailed,
    WorkersStarted,
)
from jobs.search.config import Objective
from jobs.search.objectives import objective_scores
from jobs.search.space import Values
from jobs.search.trials import Trial, TrialEvent, TrialReport, point_key
from jobs.train import run_training
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker
from jobs.training.worker import StopSignal

FAILED = "failed"  # key of a report that says so
_SCORE = "validation/elbo"


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a search needs to know."""

    make_job: Callable[[Values], TrainJob]  # the training of a point; raises UserError
    objectives: tuple[Objective, ...]
    known: Mapping[str, Trial]  # of earlier commands, by their points
    threads: int  # of torch
    device: str
    max_failures: int  # restarts of a trial whose process was lost
    nested: Resources | None  # of the cluster, where each trial is a Ray Train job of several workers
    scratch: Path  # for Ray's notes of such jobs


def run_trial(config: dict[str, Any], plan: TrialPlan, board: Any) -> None:
    """Train one point of the space to its end, or until the scheduler stops it, which raises SystemExit in a report.

    An earlier command's reports are given again first; a trial that had ended has no more than these.

    Args:
        config: `number` and `values`.
        plan: see there.
        board: the search's.
    """
    # Read by Ray here when it gives this process to another trial: a stopped one winds up first.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    number, values = config["number"], config["values"]
    known = plan.known.get(point_key(values))
    reports = _Reports(plan, board, number, values, after=known.step if known else 0)
    for step, scores in known.reports if known else ():
        tune.report({"step": step, **scores})
    if known is not None and known.status == "failed":
        tune.report({FAILED: 1})
    if (known is not None and known.ended) or ray.get(board.stopping.remote()):
        return
    reports.post(WorkersStarted())
    try:
        _train(plan, reports, plan.make_job(values))
    except (StoppedError, KeyboardInterrupt):  # the command was: it has its checkpoint
        reports.say(TrainingStopped(reports.last))
    except UserError as error:
        own = isinstance(error, TrainingError)
        reports.say(WorkerFailed(str(error), retryable=not own, trial_specific=own))
        if not own:
            raise  # Ray tries again, some times
        tune.report({FAILED: 1})
    except Exception as error:
        reports.say(WorkerFailed(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", trial_specific=True))
        tune.report({FAILED: 1})


def _train(plan: TrialPlan, reports: "_Reports", job: TrainJob) -> None:
    reports.job = job
    if plan.nested is None:
        torch.set_num_threads(plan.threads)
        tune_malloc()
        if plan.device == "cuda":
            torch.set_float32_matmul_precision("high")
        worker = Worker(device=torch.device(plan.device), stop=reports.look)
        train_model(job, worker, reports.post)
    else:
        scratch = plan.scratch / f"trial-{reports.number}"
        run_training(job, plan.nested, scratch, reports.take, stop=reports.asked, end=lambda: None)
    reports.report()
    if reports.last < job.train.steps:
        raise TrainingError("the ELBO of the validation images is not finite after the last step")


class _Reports:
    """Hands on what a training tells, and reports its scores to Ray Tune at each checkpoint.

    Args:
        plan, board, number, values: see `run_trial`.
        after: step of the last report that an earlier command has.
    """

    def __init__(self, plan: TrialPlan, board: Any, number: int, values: Values, after: int) -> None:
        self._plan, self._board, self.number, self._values = plan, board, number, values
        self.last = after  # step that was reported
        self._elbo: dict[int, float] = {}  # by step
        self._committed: SimpleQueue[int] = SimpleQueue()
        self.asked = StopSignal(board)  # whether to make a checkpoint and end
        self.job: TrainJob | None = None

    def post(self, message: Event | TrialReport) -> Any:
        """Hand on a message of the training, from any of its threads."""
        match message:
            case TrainingResumed():
                for point in message.history:
                    self._see(point)
            case MetricPoint():
                self._see(message)
        told = self._board.post.remote(TrialEvent(self.number, self._values, message))
        if isinstance(message, CheckpointSaved):
            self._committed.put(message.step)
        if isinstance(message, TrainingResumed) and message.step:
            self._committed.put(message.step)  # an earlier command may have been killed before it reported this one
        return told

    def say(self, message: Event | TrialReport) -> None:
        """Hand on a message and wait until it has arrived, with all before it."""
        ray.get(self.post(message))

    def look(self) -> bool:
        """Between two steps: report what has been committed; whether to make a checkpoint and end."""
        self.report()
        return self.asked()

    def take(self, messages: list[Event]) -> None:
        """What the workers of a nested training posted."""
        for message in messages:
            self.post(message)
        self.report()

    def report(self) -> None:
        """Report the scores of each step that was committed since."""
        while True:
            try:
                step = self._committed.get_nowait()
            except Empty:
                return
            if step > self.last and math.isfinite(self._elbo.get(step, math.nan)):
                try:
                    scores = {"elbo": self._elbo[step], **self._measure(step)}
                except CorruptedError:
                    continue  # the workers of a nested training have gone on, and newer checkpoints are there
                self.last = step
                self.say(TrialReport(step, scores))
                tune.report({"step": step, **scores})

    def _see(self, point: MetricPoint) -> None:
        if _SCORE in point.metrics:
            self._elbo[point.step] = point.metrics[_SCORE]

    def _measure(self, step: int) -> dict[str, float]:
        if self.job is None or set(self._plan.objectives) <= {"elbo"}:
            return {}
        with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
            model = load_model(Checkpoints(self.job.checkpoints).fetch(step, Path(folder)))
        validation = ShardedDataset(self.job.data, "validation")
        scores = objective_scores(model.to(self._plan.device), validation, self._plan.objectives, self.job.seed)
        return {name: score for name, score in scores.items() if math.isfinite(score)}
