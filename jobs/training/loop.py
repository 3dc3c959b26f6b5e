"""The training loop: plain torch, the same on one CPU and on many GPUs. It knows nothing of Ray."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.checkpoints.manager import Checkpoints
from jobs.checkpoints.writer import CheckpointWriter
from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import permute, worker_slices
from jobs.device import to_device
from jobs.errors import UserError
from jobs.events import Event, ShardsOpened, TrainingStopped, TrainingWarning
from jobs.training.ema import averaged_model
from jobs.training.metrics import MetricAccumulator
from jobs.training.monitor import TrainingMonitor, memory_errors
from jobs.training.snapshot import machine, take_snapshot
from jobs.training.state import Training, TrainJob, Worker, prepare
from jobs.training.step import slice_noise, train_step
from vlae.models.base import HierarchicalModel

_IMAGES = 512
_SLICES = 8  # that the workers share; there may be more workers
_STEP = 2**62  # keys the noise of validation: a step that training never reaches


class Validation:
    """Scores a model while it is trained: images and noise are the same for any number of workers.

    Args:
        training: of which this is one worker; its dataset may have no validation split.
    """

    def __init__(self, training: Training) -> None:
        job, self._worker = training.job, training.worker
        self._seed = job.seed
        self._count = min(_IMAGES, training.loader.data.manifest.num_samples("validation"))
        self._slices: dict[int, torch.Tensor] = {}
        if not self._count:
            return
        data = ShardedDataset(job.data, "validation")
        numbers = np.array_split(permute(np.arange(self._count), len(data), job.seed), _SLICES)
        world_size = min(self._worker.world_size, _SLICES)
        if self._worker.rank < world_size:
            for number in worker_slices(_SLICES, self._worker.rank, world_size):
                if len(numbers[number]):
                    self._slices[number] = to_device(data.read(numbers[number])[0], self._worker.device)

    @torch.no_grad()
    def score(self, model: HierarchicalModel) -> dict[str, float]:
        """Negative reconstruction minus KL, nats per image; nothing if there is no validation split.

        Every worker must call this; all get the same answer.
        """
        if not self._count:
            return {}
        device = self._worker.device
        sums = torch.zeros(_SLICES, dtype=torch.float64, device=device)
        mode = model.training
        model.eval()
        for number, images in self._slices.items():
            terms = model(images, slice_noise(model, range(number, number + 1), len(images), self._seed, _STEP, device))
            sums[number] = (terms.reconstruction + terms.kl.sum(1)).double().sum()
        model.train(mode)
        if self._worker.world_size > 1:
            dist.all_reduce(sums)  # each number comes from one worker alone, so that the order does not matter
        total = math.fsum(sums.tolist())
        return {"validation/elbo": -total / self._count}


class StoppedError(Exception):
    """Training was asked to stop, and has, with a checkpoint."""


def train_model(job: TrainJob, worker: Worker, post: Callable[[Event], None]) -> int:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        job: what to train.
        worker: which share of each batch to compute, and where.
        post: receives the curve, warnings and the commits; called on rank 0 only, from several threads.

    Returns:
        The last step, of which there is a checkpoint.

    Raises:
        UserError: the data is missing or damaged, the store or the memory is full, or too many steps were not finite.
        StoppedError: `worker.stop` asked for it.
    """
    if worker.rank:
        post = _say_nothing
    with memory_errors(job.train), deterministic(job.train.deterministic), ExitStack() as stack:
        training = prepare(job, worker)
        _check_machine(training, post)
        for step in training.restored.passed_over:
            post(
                TrainingWarning(
                    training.step, f"damaged_{step}", f"the checkpoint of step {step} is damaged and passed over"
                )
            )
        idle = [training.model.collapsed_kl * dim for dim in training.model.latent_dims]
        curve = MetricAccumulator(
            training, TrainingMonitor(job.train, job.objective, job.progressive, idle, post), post
        )
        for opened, total in training.loader.open(training.step):
            post(ShardsOpened(opened, total))
        validation = Validation(training)
        writer = None
        if worker.rank == 0:
            place = Checkpoints(job.checkpoints)
            writer = stack.enter_context(CheckpointWriter(place, job.train.keep_checkpoints, post))
        _run(training, curve, validation, writer, post)
    return training.step


def _run(
    training: Training,
    curve: MetricAccumulator,
    validation: Validation,
    writer: CheckpointWriter | None,
    post: Callable[[Event], None],
) -> None:
    config, worker = training.job.train, training.worker
    for images in training.loader.batches(training.step, config.steps):
        values = train_step(training, images)
        training.step += 1
        step, last = training.step, training.step == config.steps
        curve.add(values, step, config.batch_size, log=last or step % config.log_every == 0)
        saves = last or step % config.checkpoint_every == 0
        score = None
        if saves or (config.validate_every and step % config.validate_every == 0):
            score = _validate(training, curve, validation)
        if writer is None:
            continue
        writer.check()
        if saves:
            writer.save(take_snapshot(training, curve.history, curve.pending, score))
        elif worker.stop():
            writer.save(take_snapshot(training, curve.history, curve.pending, None))
            writer.flush()
            post(TrainingStopped(step))
            raise StoppedError


def _validate(training: Training, curve: MetricAccumulator, validation: Validation) -> float | None:
    """Add a point with the validation score; returns it if it is finite."""
    scores = validation.score(averaged_model(training.ema, training.model))
    curve.point(training.step, scores)
    curve.restart_clock()
    score = scores.get("validation/elbo", math.nan)
    return score if math.isfinite(score) else None


def _check_machine(training: Training, post: Callable[[Event], None]) -> None:
    """Exact training goes on with the kind of device and the threads that it began with.

    Raises:
        UserError: this worker has others.
    """
    began = training.restored.machine
    if not training.job.train.deterministic or began is None:
        return
    here = machine(training.worker.device)
    if began["device"] != here["device"]:
        raise UserError(
            f"train.deterministic=true: this training began on {began['device']} and would go on on {here['device']}, which "
            f"enters the result: set train.device={began['device']}, with a GPU or a share of one for each worker "
            "(train.gpus_per_worker) if that is cuda"
        )
    if began["threads"] != here["threads"]:
        raise UserError(
            f"train.deterministic=true: this training began with {began['threads']} threads per worker, which enter the "
            f"result, and would go on with {here['threads']}: set train.threads_per_worker={began['threads']}"
        )
    if began != here:
        text = f"exact training began on {began['processor']} and goes on on {here['processor']}: bits may differ"
        post(TrainingWarning(training.step, "processor", text))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """For the time of a `with` block, only kernels that give the same bits every time; an error where there is none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's linear algebra is first used
    memory: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled


def _say_nothing(message: Event) -> None:
    """Only rank 0 tells."""
