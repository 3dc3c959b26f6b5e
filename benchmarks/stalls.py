"""Measure what the training thread waits for besides its steps, in a Ray task that does the work of a training worker.

Timers wrap the product's functions in the process of the task.
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
    """Times of calls.

    Attributes:
        calls: Start and duration of each call in seconds, by activity.
        committed: Times of publication of the checkpoints in seconds.
    """

    calls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    committed: list[float] = field(default_factory=list)

    def around(self, activity: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a timer."""

        def timed(*args: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                self.calls[activity].append((start, time.perf_counter() - start))

        return timed

    def post(self, post: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return the posting function with a timer."""
        timed = self.around(_POST, post)

        def observed(message: Event) -> None:
            timed(message)
            if isinstance(message, CheckpointSaved):
                self.committed.append(time.perf_counter())

        return observed

    def warm(self) -> tuple[float, "Record"]:
        """Return the seconds from the warm-up to the end of the last step, and the calls in them."""
        steps = self.calls[_STEP]
        begin, end = steps[_WARM_UP][0], sum(steps[-1])
        calls = {activity: [call for call in times if begin <= call[0] < end] for activity, times in self.calls.items()}
        return end - begin, Record(calls, [stamp for stamp in self.committed if begin <= stamp < end])

    def seconds(self, activity: str) -> float:
        """Return the total duration of the calls of an activity."""
        return sum(seconds for _, seconds in self.calls.get(activity, []))

    def slowed(self) -> tuple[float, int]:
        """Return the seconds by which steps were longer while a checkpoint was written, and their number."""
        spans = list(zip((start for start, _ in self.calls[_CHECKPOINT[1]]), self.committed, strict=False))
        during: list[float] = []
        others: list[float] = []
        for start, seconds in self.calls[_STEP]:
            writing = any(start < end and start + seconds > begin for begin, end in spans)
            (during if writing else others).append(seconds)
        return sum(during) - len(during) * median(others), len(during)


def worker(job: TrainJob, queue: Any, threads: int, steps: int) -> Record:
    """Do the work of `jobs.training.worker` with timers."""
    record = Record()
    for owner, name, activity in (
        (jobs.training.loop, "train_step", _STEP),
        (jobs.training.loop, "take_snapshot", _CHECKPOINT[0]),
        (CheckpointWriter, "save", _CHECKPOINT[1]),
        (CheckpointWriter, "check", _CHECKPOINT[2]),
        (MetricAccumulator, "add", _TRACKING[0]),
        (Validation, "elbo", _OTHERS[0]),
    ):
        setattr(owner, name, record.around(activity, getattr(owner, name)))
    torch.set_num_threads(threads)
    tune_malloc()
    ask = record.around(_OTHERS[1], StopSignal(queue))
    stop = lambda: ask() or len(record.calls[_STEP]) >= steps  # noqa: E731
    with suppress(StoppedError):
        train_model(job, Worker(stop=stop), record.post(queue.post.remote))
    return record


def stalls(job: TrainJob, sender: MetricUploader, threads: int) -> None:
    """Train over two checkpoints beside Ray, the driver's polling and MLflow, and print the waiting times."""
    steps = 2 * job.train.checkpoint_every + job.train.checkpoint_every // 5 + _WARM_UP
    with cluster(RayConfig()), sender:
        queue, received = make_event_queue(), 0
        task = ray.remote(worker).options(num_cpus=1).remote(job, queue, threads, steps)
        while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
            messages = ray.get(queue.take.remote(received))
            received += len(messages)
            for message in messages:
                sender.put(message)
        total, record = ray.get(task).warm()
    print(f"{len(record.calls[_STEP])} steps in {total:.1f} s, of which")
    for activity, calls in record.calls.items():
        longest = max((seconds for _, seconds in calls), default=0.0)
        seconds = record.seconds(activity)
        print(
            f"  {activity:28} {len(calls):5} times {seconds * 1e3:10.1f} ms {seconds / total:9.4%}, "
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
