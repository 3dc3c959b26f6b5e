"""The tune job: Ray Tune runs the trials of a search, several at once, and the driver follows their events."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, PlacementGroupFactory, RunConfig, Tuner
from ray.tune.experiment import Trial as RayTrial

from jobs.cluster.driver_loop import DriverLoop, ray_error_reason
from jobs.cluster.event_queue import make_event_queue
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import TrainingStopped
from jobs.search.config import TuneConfig
from jobs.search.resources import TrialResources
from jobs.search.scheduler import make_scheduler
from jobs.search.searcher import OptunaSearcher
from jobs.search.trainable import FAILED, TrialPlan, train_trial
from jobs.search.trials import TrialEvent, TrialResult

# Read by Ray Tune. Its own result files are not needed: MLflow and the record of the search hold everything.
# Reports of a failure have no metrics.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
_GRACE_SECONDS = 30.0  # for the last checkpoints of the running trials
_ONE_BYTE = {"memory": 1.0}  # a trial whose workers belong to Ray Train; Ray Tune refuses to reserve nothing at all


def run_search(
    config: TuneConfig,
    plan: TrialPlan,
    resources: TrialResources,
    searcher: OptunaSearcher,
    train: TrainConfig,
    scratch: Path,
    on_events: Callable[[list[TrialEvent]], None],
) -> None:
    """Run a search to its end.

    Args:
        config: Settings of the search.
        plan: Description of its trials.
        resources: Resources of its trials.
        searcher: Suggests the points to try.
        train: Settings of a whole training.
        scratch: Folder for Ray's files, seen by every node. It can be deleted after the call.
        on_events: Called in this thread with the events of the trials, several times a second.

    Raises:
        UserError: Ray Tune failed, or `searcher` or `on_events` raised the error.
        KeyboardInterrupt: The search was stopped: after last checkpoints, or at once on a second Ctrl-C.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    event_queue = make_event_queue()
    # Ray Train reserves the resources of the workers of a nested training.
    reserved = resources.worker.resources if plan.nested is None else _ONE_BYTE
    tuner = Tuner(
        tune.with_resources(
            tune.with_parameters(train_trial, plan=plan, event_queue=event_queue), PlacementGroupFactory([reserved])
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(config, train, {trial.number: trial.step for trial in plan.trials.values()}),
            num_samples=config.trials,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=plan.nested is None,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[TrialResultCallback(event_queue, config.budget(train.steps))],
            failure_config=FailureConfig(max_failures=plan.max_failures),
        ),
    )
    result = DriverLoop(event_queue, on_events, RunningTrials(), grace_seconds=_GRACE_SECONDS).run(tuner.fit)
    if (error := result.exception()) is not None:
        raise UserError(f"stage=tune: Ray Tune failed ({ray_error_reason(error)}).", retry=True) from error
    if searcher.error is not None:
        raise searcher.error


@dataclass
class RunningTrials:
    """The `Policy` of a search: it never gives up, because Ray Tune restarts trials and counts their failures.

    Attributes:
        numbers: Numbers of the trials that can still save a checkpoint.
    """

    numbers: set[int] = field(default_factory=set)

    @property
    def is_running(self) -> bool:
        """Whether a trial can still save a checkpoint."""
        return bool(self.numbers)

    def decide(self, events: Sequence[TrialEvent]) -> None:
        """Update the numbers of the running trials from the events since the last call, oldest first."""
        for event in events:
            if isinstance(event.event, TrainingStopped | TrialResult):
                self.numbers.discard(event.number)
            else:
                self.numbers.add(event.number)


class TrialResultCallback(Callback):
    """Put the result of each trial into the event queue, after all events of the trial itself.

    Ray Tune calls it in the thread of `Tuner.fit`. `steps` are those of a trial that is not stopped early.
    """

    def __init__(self, event_queue: Any, steps: int) -> None:
        self._event_queue, self._steps = event_queue, steps

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, because Ray's copy on disk is never read."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:  # noqa: ARG002
        """Put the result of a trial that returned or that the scheduler stopped."""
        last = trial.last_result or {}
        if last.get(FAILED):
            self._put(trial, TrialResult("failed"))
        elif last.get("step") == self._steps:
            self._put(trial, TrialResult("finished"))
        # A trial that returns because the whole search is stopped has no result: the next command continues it.
        elif "step" in last and not ray.get(self._event_queue.stop_requested.remote()):
            self._put(trial, TrialResult("stopped"))

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:  # noqa: ARG002
        """Put the result of a trial whose process failed more than `train.max_failures` times."""
        self._put(trial, TrialResult("failed", "train.max_failures: its process was lost (killed or out of memory)."))

    def _put(self, trial: RayTrial, result: TrialResult) -> None:
        event = TrialEvent(trial.config["number"], trial.config["values"], result)
        ray.get(self._event_queue.put.remote(event))
