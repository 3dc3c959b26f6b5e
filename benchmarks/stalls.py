"""What the training thread waits for besides its steps, in a Ray task that does what a training worker does.

The clocks are put around the product's functions here, in the process of the task.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import ray
import torch

import jobs.training.loop
from benchmarks.harness import verdict
from jobs.checkpoints.writer import CheckpointWriter
from jobs.cluster.event_queue import make_event_queue
from jobs.cluster.ray_cluster import cluster
from jobs.config import RayConfig
from jobs.device import tune_malloc
from jobs.events import CheckpointSaved, Event
from jobs.tracking.uploader import MetricUploader
from jobs.training.loop import StoppedError, Validation, train_model
from jobs.training.metrics import MetricAccumulator
from jobs.training.state import TrainJob, Worker
from jobs.training.worker import StopSignal

_WARM_UP = 25  # steps
_POLL_SECONDS = 0.25  # as the driver's
_STEP, _POST = "training step", "posting, within the others"
_CHECKPOINT, _TRACKING = ("copying the state", "handing it to the writer", "looking at the writer"), ("curve",)
_OTHERS = ("validation", "asking whether to stop")


@dataclass
class Record:
    """When each call began, and how long it took, by what it does; seconds."""

    calls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    committed: list[float] = field(default_factory=list)  # when checkpoints were published

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a clock."""

        def timed(*args: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                self.calls[part].append((start, time.perf_counter() - start))

        return timed

    def post(self, post: Callable[[Event], None]) -> Callable[[Event], None]:
        """Posting with a clock."""
        timed = self.around(_POST, post)

        def seen(message: Event) -> None:
            timed(message)
            if isinstance(message, CheckpointSaved):
                self.committed.append(time.perf_counter())

        return seen

    def warm(self) -> tuple[float, "Record"]:
        """Seconds from the end of the warm-up to the end of the last step, and what was called in them."""
        steps = self.calls[_STEP]
        begin, end = steps[_WARM_UP][0], sum(steps[-1])
        calls = {part: [call for call in found if begin <= call[0] < end] for part, found in self.calls.items()}
        return end - begin, Record(calls, [at for at in self.committed if begin <= at < end])

    def seconds(self, part: str) -> float:
        """Of all its calls."""
        return sum(seconds for _, seconds in self.calls.get(part, []))

    def slowed(self) -> tuple[float, int]:
        """Seconds by which steps were longer while a checkpoint was written than else, and how many they were."""
        spans = list(zip((at for at, _ in self.calls[_CHECKPOINT[1]]), self.committed, strict=False))
        during: list[float] = []
        others: list[float] = []
        for start, seconds in self.calls[_STEP]:
            writing = any(start < end and start + seconds > begin for begin, end in spans)
            (during if writing else others).append(seconds)
        return sum(during) - len(during) * median(others), len(during)


def worker(job: TrainJob, board: Any, threads: int, steps: int) -> Record:
    """As `jobs.training.worker`, with clocks."""
    record = Record()
    for owner, name, part in (
        (jobs.training.loop, "train_step", _STEP),
        (jobs.training.loop, "take_snapshot", _CHECKPOINT[0]),
        (CheckpointWriter, "save", _CHECKPOINT[1]),
        (CheckpointWriter, "check", _CHECKPOINT[2]),
        (MetricAccumulator, "add", _TRACKING[0]),
        (Validation, "score", _OTHERS[0]),
    ):
        setattr(owner, name, record.around(part, getattr(owner, name)))
    torch.set_num_threads(threads)
    tune_malloc()
    ask = record.around(_OTHERS[1], StopSignal(board))
    stop = lambda: ask() or len(record.calls[_STEP]) >= steps  # noqa: E731
    with suppress(StoppedError):
        train_model(job, Worker(stop=stop), record.post(board.post.remote))
    return record


def stalls(job: TrainJob, sender: MetricUploader, threads: int) -> None:
    """Train over two checkpoints, with Ray, the driver's polling and MLflow beside it; print what was waited for."""
    steps = 2 * job.train.checkpoint_every + job.train.checkpoint_every // 5 + _WARM_UP
    with cluster(RayConfig()), sender:
        board, seen = make_event_queue(), 0
        task = ray.remote(worker).options(num_cpus=1).remote(job, board, threads, steps)
        while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
            messages = ray.get(board.take.remote(seen))
            seen += len(messages)
            for message in messages:
                sender.take(message)
        total, record = ray.get(task).warm()
    print(f"{len(record.calls[_STEP])} steps in {total:.1f} s, of which")
    for part, calls in record.calls.items():
        longest = max((seconds for _, seconds in calls), default=0.0)
        seconds = record.seconds(part)
        print(
            f"  {part:28} {len(calls):5} times {seconds * 1e3:10.1f} ms {seconds / total:9.4%}, "
            f"longest {longest * 1e3:.2f} ms"
        )
    slowed, count = record.slowed()
    print(
        f"  {count} steps during which a checkpoint was written took {slowed * 1e3:.0f} ms more: {slowed / total:.2%}"
    )
    checkpoints = 100 * sum(map(record.seconds, _CHECKPOINT)) / total
    print(verdict("checkpoints: training waits for them, % of its time", [checkpoints], 1, at_most=True))
    tracking = 100 * sum(map(record.seconds, _TRACKING)) / record.seconds(_STEP)
    print(verdict("tracking: % of the time of the steps", [tracking], 1, at_most=True))
