"""The train job: the loop, run by Ray Train on one worker or many, and watched by the driver."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from jobs.cli import defer_signals
from jobs.cluster.event_queue import make_event_queue
from jobs.cluster.ray_cluster import Resources
from jobs.cluster.resources import WorkerResources, allocate
from jobs.errors import AGAIN, TrainingError, UserError
from jobs.events import CheckpointSaved, Event, TrainingResumed, TrainingStopped, WorkerFailed, WorkersStarted
from jobs.training.state import TrainJob
from jobs.training.worker import StoppableTorch, train_worker

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 20.0  # for a last checkpoint: a node that is taken away has thirty or more
_START_FAILURES = 3  # of a worker group, one after the other


def run_training(
    job: TrainJob,
    resources: Resources,
    scratch: Path,
    on_messages: Callable[[list[Event]], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    end: Callable[[], None] = ray.shutdown,
) -> int:
    """Train and return the last step, of which there is a checkpoint.

    Ray keeps nothing that a resume needs: a worker group finds the newest whole checkpoint by itself.

    Args:
        job: what to train.
        resources: of the running cluster.
        scratch: folder for Ray's own notes, seen by every node; of no use after the call.
        on_messages: called in this thread with what the workers posted, several times a second.
        stop: asked as often whether to stop, as Ctrl-C does.
        end: ends the workers of a training that failed or was stopped, unless the end of this process does.

    Raises:
        UserError: the data or the settings do not allow it, or the workers failed too often.
        KeyboardInterrupt: or `stop` said so; after a last checkpoint, at once if it comes a second time.
    """
    board = make_event_queue()
    trainer = _trainer(job, allocate(job.train, resources), scratch, board)
    watch = _Watch(board, job.train.max_failures, on_messages)
    fit = in_thread(trainer.fit)
    try:
        try:
            watch.until(fit.done, stop)
        except KeyboardInterrupt:
            with suppress(RayError):  # the signal may have gone to Ray's processes, too
                watch.stop(fit.done)
            raise
    except BaseException:
        end()
        raise
    return _last_step(fit, watch)


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Call in a thread of its own, which leaves Ctrl-C to this one.

    Nobody waits for it at the end: `fit` may hang when its cluster is shut down.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return future


class _Watch:
    """Reads the board, hands its messages on, and decides when to give up.

    Args:
        board: of the workers.
        max_failures: restarts that are allowed without a checkpoint between them.
        on_messages: see `run_training`.
    """

    def __init__(self, board: Any, max_failures: int, on_messages: Callable[[list[Event]], None]) -> None:
        self._board, self._max_failures, self._hand_on = board, max_failures, on_messages
        self._seen = 0  # messages
        self._starts = 0  # since the last checkpoint
        self._training = self._stopped = False
        self.reason = ""  # of the last failure, as the worker told it

    def until(self, done: Callable[[], bool], stop: Callable[[], bool]) -> None:
        """Watch until the training ends.

        Raises:
            UserError: a worker met what no restart mends, or there were too many.
            KeyboardInterrupt: `stop` said so.
        """
        while not done():
            time.sleep(_POLL_SECONDS)
            self._look()
            if stop():
                raise KeyboardInterrupt
        self._look()

    def stop(self, done: Callable[[], bool]) -> None:
        """Ask for a last checkpoint and wait for it a while."""
        ray.get(self._board.stop.remote())
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._training and not self._stopped and not done() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 5)
            self._look()

    def _look(self) -> None:
        messages: list[Event] = ray.get(self._board.take.remote(self._seen))
        with defer_signals():  # a message is handed on once, and none is lost
            self._hand_on(messages)
            self._seen += len(messages)
        for message in messages:
            self._count(message)

    def _count(self, message: Event) -> None:
        match message:
            case WorkersStarted():
                self._starts, self._training = self._starts + 1, False
                if self._starts > self._max_failures + 1:
                    raise self.failed(f"{self._starts - 1} times without a checkpoint between (train.max_failures)")
                self.reason = ""
            case TrainingResumed():
                self._training = True
            case CheckpointSaved():
                self._starts = 1
            case TrainingStopped():
                self._stopped = True
            case WorkerFailed(reason, retryable, own):
                if not retryable:
                    raise TrainingError(reason) if own else UserError(reason)
                self.reason = self.reason or reason  # the others' follow from the first

    def failed(self, how: str) -> TrainingError:
        """The error of a training whose workers died."""
        reason = self.reason or "a worker ended without a word: killed, or its memory was full"
        return TrainingError(
            f"training failed {how}: {reason}; the last checkpoint is kept: run {AGAIN} again to go on"
        )


def _trainer(job: TrainJob, placement: WorkerResources, scratch: Path, board: Any) -> TorchTrainer:
    config = job.train
    # NCCL refuses two workers on one GPU.
    shared = 0 < placement.num_gpus < 1 and config.num_workers > 1
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its annotation denies the return value that Result has
        train_loop_config={"job": job, "board": board, "threads": placement.threads},
        torch_config=StoppableTorch(backend="gloo" if shared else None, board=board),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if config.min_workers else config.num_workers,  # type: ignore[arg-type]
            use_gpu=placement.num_gpus > 0,
            resources_per_worker=placement.resources,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(scratch),
            failure_config=FailureConfig(
                max_failures=-1,  # `_Watch` knows which of them are too many
                controller_failure_limit=_START_FAILURES,  # type: ignore[call-arg]  # the annotations are those of V1
            ),
        ),
    )


def _last_step(fit: Future[Any], watch: _Watch) -> int:
    try:
        return int(fit.result().return_value)
    except (TrainingFailedError, RayError) as error:
        lines = [line for line in str(error).strip().split("\n") if line.strip()]
        watch.reason = watch.reason or (lines[-1] if lines else type(error).__name__)
        raise watch.failed("in Ray") from error
