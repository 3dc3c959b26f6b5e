"""Run training loops in separate processes that pause between the rounds of a benchmark.

Each contestant has its own threads, as if it ran alone. Two loops in one process would disturb each other, because
OpenMP's threads stop waiting actively when a process has more of them than the machine has cores.
"""

import multiprocessing
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.bare_loop import bare_loop
from benchmarks.harness import Contestant
from jobs.data.dataset import ShardedDataset
from jobs.device import tune_malloc
from jobs.events import Event, MetricPoint
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.models.factory import build_model

_WARM_UP = 25  # steps; rounds end that many after a checkpoint, so that its writing is in the time of the round
_SAMPLE = 4  # steps that measure the duration of a step

Post = Callable[[Event], None]
Stop = Callable[[], bool]


class Loop(Protocol):
    """The work of a contestant in each of its processes."""

    @property
    def job(self) -> TrainJob: ...

    @property
    def threads(self) -> int: ...

    @property
    def workers(self) -> int: ...

    def train(self, rank: int, post: Post, stop: Stop) -> None: ...


@dataclass(frozen=True)
class Pipeline:
    """The training loop of the product, as its workers run it.

    Attributes:
        job: The training.
        threads: Threads per process.
        workers: Number of processes.
    """

    job: TrainJob
    threads: int
    workers: int = 1

    def train(self, rank: int, post: Post, stop: Stop) -> None:
        wrap = _distributed if self.workers > 1 else Worker.wrap
        stop = _StopAtEveryStep(stop, self.job.train.checkpoint_every)
        tune_malloc()  # as a training worker does
        train_model(self.job, Worker(rank=rank, world_size=self.workers, wrap=wrap, stop=stop), post)


@dataclass(frozen=True)
class Bare:
    """A minimal training loop for comparison.

    Attributes:
        job: The training.
        threads: Threads per process.
        workers: Number of processes.
    """

    job: TrainJob
    threads: int
    workers: int = 1

    def train(self, rank: int, post: Post, stop: Stop) -> None:  # noqa: ARG002
        data = ShardedDataset(self.job.data, "train")
        images = data.read(np.arange(len(data)))[0].permute(0, 2, 3, 1)
        model = build_model(self.job.model, data.image_shape, self.job.seed)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def log(step: int, loss: float) -> None:
            post(MetricPoint(step, 0, {"train/loss": loss}))

        bare_loop(model, images, self.job.train, self.job.objective, log, stop)


def _distributed(module: nn.Module) -> nn.Module:
    """Wrap a module as Ray does for `jobs.training.worker`."""
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


class _StopAtEveryStep:
    """Asks at every step, although the loop does not ask at steps that save a checkpoint."""

    def __init__(self, stop: Stop, checkpoint_every: int) -> None:
        self._stop, self._every, self._step = stop, checkpoint_every, 0

    def __call__(self) -> bool:
        self._step += 1
        if self._step % self._every == 0:
            self._step += 1
            self._stop()
        return self._stop()


class _Gate:
    """Lets a loop run a number of steps, reports their end, and blocks until more are requested."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._left = pipe, _WARM_UP

    def __call__(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self._pipe.send(None)
            self._left = self._pipe.recv()
        return False


def _start(loop: Loop, rank: int, rendezvous: str, pipe: Connection, posts: Connection) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # of a renamed argument of DistributedDataParallel
    torch.set_num_threads(loop.threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if loop.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=loop.workers)
    lock = threading.Lock()

    def post(message: Event) -> None:
        with lock:
            posts.send(message)

    loop.train(rank, post, _Gate(pipe))


class Group:
    """The warmed-up processes of one contestant; leaving its context kills them.

    Args:
        loop: Work of the processes.
        take: Receives the events of the processes in a thread.
    """

    def __init__(self, loop: Loop, take: Post | None = None) -> None:
        self._loop, self._take = loop, take
        self.losses: dict[int, float] = {}  # by step
        context: Any = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipe, pipe = context.Pipe()
        posts, sender = context.Pipe(duplex=False)
        rendezvous = str(Path(self._folder.name) / "rendezvous")
        self._processes = [
            context.Process(target=_start, args=(loop, rank, rendezvous, pipe, sender), daemon=True)
            for rank in range(loop.workers)
        ]
        for process in self._processes:
            process.start()
        pipe.close()  # so that the end of the processes closes the pipe
        sender.close()
        threading.Thread(target=self._receive, args=(posts,), daemon=True).start()
        self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def contestant(self, name: str, steps: int) -> Contestant:
        """Return a contestant whose rounds have that many steps."""
        return Contestant(name, lambda: self.run(steps))

    def run(self, steps: int) -> int:
        """Run that many steps and return the number of images."""
        self._pipe.send(steps)
        self._pipe.recv()
        return steps * self._loop.job.train.batch_size

    def steps_in(self, seconds: float) -> int:
        """Return about how many steps the contestant runs in that time."""
        start = time.perf_counter()
        self.run(_SAMPLE)
        return max(1, round(seconds * _SAMPLE / (time.perf_counter() - start)))

    def _receive(self, posts: Connection) -> None:
        while True:
            try:
                message = posts.recv()
            except EOFError:
                return
            if isinstance(message, MetricPoint) and "train/loss" in message.metrics:
                self.losses[message.step] = message.metrics["train/loss"]
            if self._take is not None:
                self._take(message)
