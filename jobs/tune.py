"""The tune job: Ray Tune runs the trials of a search, several at a time, and the driver follows them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback, FailureConfig, PlacementGroupFactory, RunConfig, Tuner
from ray.tune.experiment import Trial as RayTrial

from jobs.cli import defer_signals
from jobs.cluster.event_queue import make_event_queue
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import TrainingStopped
from jobs.search.config import TuneConfig
from jobs.search.resources import TrialResources
from jobs.search.scheduler import make_scheduler
from jobs.search.searcher import OptunaSearcher
from jobs.search.trainable import FAILED, TrialPlan, run_trial
from jobs.search.trials import Status, TrialEvent
from jobs.train import in_thread

# Read by Ray Tune. Its own result files are of no use: all that is told is in MLflow and in the search's record.
# Reports of a failure have no scores.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
_POLL_SECONDS = 0.25
_GRACE_SECONDS = 30.0  # for the last checkpoints of the trials that are under way
_ANY_BYTE = {"memory": 1.0}  # what a trial holds itself whose workers are Ray Train's: Ray Tune refuses nothing at all


@dataclass(frozen=True)
class TrialResult:
    """A trial of which nothing more is to come."""

    number: int
    values: Mapping[str, Any]
    status: Status
    reason: str = ""


def run_search(
    config: TuneConfig,
    plan: TrialPlan,
    room: TrialResources,
    proposals: OptunaSearcher,
    train: TrainConfig,
    scratch: Path,
    on_news: Callable[[Sequence[TrialEvent], Sequence[TrialResult]], None],
) -> None:
    """Run a search to its end.

    Args:
        config: the search.
        plan: of its trials.
        room: for them.
        proposals: which points to try.
        train: settings of a whole training.
        scratch: folder for Ray's own notes, seen by every node; of no use after the call.
        on_news: called in this thread several times a second: what the trials tell, then which of them have ended.

    Raises:
        UserError: Ray Tune failed; what was told is kept.
        KeyboardInterrupt: after last checkpoints; at once if it comes a second time.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    board = make_event_queue()
    ends = TrialResultCallback(config.budget(train.steps))
    tuner = Tuner(
        _trainable(plan, room, board),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=make_scheduler(config, train, {trial.number: trial.step for trial in plan.known.values()}),
            num_samples=config.trials,
            max_concurrent_trials=room.max_concurrent,
            reuse_actors=plan.nested is None,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[ends],
            failure_config=FailureConfig(max_failures=plan.max_failures),
        ),
    )
    _fit(tuner, _Watch(board, ends, on_news))
    if proposals.error is not None:
        raise proposals.error


def _fit(tuner: Tuner, watch: "_Watch") -> None:
    """Let Ray Tune run in a thread of its own, and watch it from this one."""
    fit = in_thread(tuner.fit)
    try:
        try:
            watch.until(fit.done)
        except (KeyboardInterrupt, UserError):
            with suppress(RayError):  # the signal may have gone to Ray's processes, too
                watch.stop(fit.done)
            raise
    except BaseException:
        ray.shutdown()  # ends the trials
        raise
    if (error := fit.exception()) is not None:
        lines = [line for line in str(error).strip().split("\n") if line.strip()]
        raise UserError(f"the search failed in Ray Tune: {lines[-1] if lines else type(error).__name__}") from error


def _trainable(plan: TrialPlan, room: TrialResources, board: Any) -> Any:
    """The trial with what it takes of the cluster: its CPUs, or next to nothing where its workers take them."""
    own = room.placement.resources if plan.nested is None else _ANY_BYTE
    function = tune.with_parameters(run_trial, plan=plan, board=board)
    return tune.with_resources(function, PlacementGroupFactory([own]))


class TrialResultCallback(Callback):
    """Tells how trials ended; Ray Tune calls it in a thread of its own.

    Args:
        steps: of a trial that is not stopped.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._news: SimpleQueue[TrialResult] = SimpleQueue()

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy on disk, of which nothing is needed."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:  # noqa: ARG002
        """A trial came to its end, or was stopped by the scheduler."""
        last = trial.last_result or {}
        if last.get(FAILED):
            self._say(trial, "failed")
        elif last.get("step") == self._steps:
            self._say(trial, "finished")
        elif "step" in last:
            self._say(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:  # noqa: ARG002
        """The process of a trial was lost too often."""
        self._say(
            trial, "failed", "its process was lost too often (train.max_failures): killed, or its memory was full"
        )

    def _say(self, trial: RayTrial, status: Status, reason: str = "") -> None:
        self._news.put(TrialResult(trial.config["number"], trial.config["values"], status, reason))

    def take(self) -> list[TrialResult]:
        """What came since the last call."""
        found = []
        with suppress(Empty):
            while True:
                found.append(self._news.get_nowait())
        return found


class _Watch:
    """Reads the board and hands on what it says, before the ends that come after it.

    Args:
        board: of the search.
        ends: of its trials.
        on_news: see `run_search`.
    """

    def __init__(
        self,
        board: Any,
        ends: TrialResultCallback,
        on_news: Callable[[Sequence[TrialEvent], Sequence[TrialResult]], None],
    ) -> None:
        self._board, self._ends, self._hand_on = board, ends, on_news
        self._seen = 0  # messages
        self._running: set[int] = set()  # trials
        self._stopping = False

    def until(self, done: Callable[[], bool]) -> None:
        """Watch until the search ends."""
        while not done():
            time.sleep(_POLL_SECONDS)
            self._look()
        self._look()

    def stop(self, done: Callable[[], bool]) -> None:
        """Ask every trial for a last checkpoint and wait for it a while."""
        self._stopping = True
        ray.get(self._board.stop.remote())
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running and not done() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 5)
            self._look()

    def _look(self) -> None:
        ended = self._ends.take()  # first: what these trials have told is on the board by now
        if self._stopping:  # it was not the scheduler
            ended = [one for one in ended if one.status != "stopped"]
        told: list[TrialEvent] = ray.get(self._board.take.remote(self._seen))
        with defer_signals():  # a message is handed on once, and none is lost
            self._seen += len(told)
            self._hand_on(told, ended)
        for one in told:
            if isinstance(one.message, TrainingStopped):
                self._running.discard(one.number)
            else:
                self._running.add(one.number)
        self._running -= {one.number for one in ended}
