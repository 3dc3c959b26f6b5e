"""The training loop: plain torch, the same on one CPU and on many GPUs, without Ray."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.checkpoints.manager import CheckpointManager
from jobs.checkpoints.writer import CheckpointWriter
from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import permute, worker_microbatches
from jobs.device import to_device
from jobs.errors import UserError
from jobs.events import Event, ShardsOpened, TrainingResumed, TrainingStopped, TrainingWarning
from jobs.training.metrics import MetricAccumulator
from jobs.training.monitor import TrainingMonitor, memory_errors
from jobs.training.state import Training, TrainJob, Worker, machine_info, prepare, take_snapshot
from jobs.training.step import microbatch_noise, train_step
from vlae.models.base import HierarchicalModel

_IMAGES = 512
_CHUNKS = 8  # of the validation images, divided among the workers; there may be more workers
_NOISE_STEP = 2**62  # key of the validation noise: a step that training never reaches


class StoppedError(Exception):
    """Training stopped on request, with a checkpoint."""


def train_model(job: TrainJob, worker: Worker, emit: Callable[[Event], None]) -> int:
    """Train from the newest intact checkpoint, or from the start, to the last step.

    Args:
        job: Settings of the training.
        worker: This worker, whose microbatches of each global batch are computed here.
        emit: Receives learning curve, warnings and saved checkpoints; called on rank 0 only, from several threads.

    Returns:
        The last step, of which there is a checkpoint.

    Raises:
        UserError: The data is missing or damaged, the store or the memory is full, or too many steps were nonfinite.
        StoppedError: `worker.stop` returned true.
    """
    config = job.train
    if worker.rank:
        emit = lambda _: None  # noqa: E731
    with memory_errors(config), deterministic_algorithms(config.deterministic), ExitStack() as stack:
        training = prepare(job, worker)
        emit = _keep_warnings(training, emit)
        _check_machine(training, emit)
        for step in training.restored.skipped:
            text = f"the checkpoint of step {step} is damaged and skipped"
            emit(TrainingWarning(training.step, f"damaged_{step}", text))
        emit(TrainingResumed(training.step, list(training.restored.history), dict(training.warnings)))
        collapsed_kl = [training.model.collapsed_kl * dim for dim in training.model.latent_dims]
        monitor = TrainingMonitor(config, job.objective, job.progressive, collapsed_kl, emit)
        accumulator = MetricAccumulator(training, monitor, emit)
        for opened, total in training.loader.open(training.step):
            emit(ShardsOpened(opened, total))
        validation = Validation(training)
        writer = None
        if worker.rank == 0:
            manager = CheckpointManager(job.checkpoints, job.owner)
            writer = stack.enter_context(CheckpointWriter(manager, config.keep_checkpoints, emit))
        for images in training.loader.batches(training.step, config.steps):
            metrics = train_step(training, images)
            training.step += 1
            step, last = training.step, training.step == config.steps
            accumulator.add(metrics, step, config.batch_size, log=last or step % config.log_every == 0)
            save = last or step % config.checkpoint_every == 0
            elbo = None
            if save or (config.validate_every and step % config.validate_every == 0):
                elbo = validation.elbo(training.averaged_model)
                if elbo is not None:
                    accumulator.add_point(step, {"validation/elbo": elbo})
                accumulator.restart_clock()
            if writer is None:
                continue
            writer.check()
            if save:
                elbo = elbo if elbo is not None and math.isfinite(elbo) else None
                writer.save(take_snapshot(training, accumulator.history, accumulator.pending, elbo))
            elif worker.stop():
                writer.save(take_snapshot(training, accumulator.history, accumulator.pending, None))
                writer.flush()
                emit(TrainingStopped(step))
                raise StoppedError
    return training.step


class Validation:
    """Evaluates a model during training, on images and noise that are the same for any number of workers."""

    def __init__(self, training: Training) -> None:
        job, self._worker = training.job, training.worker
        self._seed = job.seed
        self._count = min(_IMAGES, training.loader.data.manifest.num_samples("validation"))
        self._chunks: dict[int, torch.Tensor] = {}  # this worker's images by chunk
        world_size = min(self._worker.world_size, _CHUNKS)
        if not self._count or self._worker.rank >= world_size:
            return
        data = ShardedDataset(job.data, "validation")
        samples = np.array_split(permute(np.arange(self._count), len(data), job.seed), _CHUNKS)
        for chunk in worker_microbatches(_CHUNKS, self._worker.rank, world_size):
            if len(samples[chunk]):
                self._chunks[chunk] = to_device(data.read(samples[chunk])[0], self._worker.device)

    @torch.no_grad()
    def elbo(self, model: HierarchicalModel) -> float | None:
        """Return the mean validation ELBO in nats per image, the same on every worker; None without a validation split.

        Every worker must call this.
        """
        if not self._count:
            return None
        device = self._worker.device
        sums = torch.zeros(_CHUNKS, dtype=torch.float64, device=device)
        mode = model.training
        model.eval()
        for chunk, images in self._chunks.items():
            noise = microbatch_noise(model, range(chunk, chunk + 1), len(images), self._seed, _NOISE_STEP, device)
            terms = model(images, noise)
            sums[chunk] = (terms.reconstruction + terms.kl.sum(1)).double().sum()
        model.train(mode)
        if self._worker.world_size > 1:
            dist.all_reduce(sums)  # exact, because each element is nonzero on one worker only
        return -math.fsum(sums.tolist()) / self._count


def _keep_warnings(training: Training, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return `emit` with a side effect: warnings enter the training, so that its checkpoints hold them."""

    def keep(event: Event) -> None:
        if isinstance(event, TrainingWarning):
            training.warnings[event.key] = event.text
        emit(event)

    return keep


def _check_machine(training: Training, emit: Callable[[Event], None]) -> None:
    # The bits of a sum depend on the kind of device, its processor and the number of threads.
    before = training.restored.machine
    if not training.job.train.deterministic or before is None:
        return
    now = machine_info(training.worker.device)
    if before["device"] != now["device"]:
        raise UserError(
            f"train.deterministic=true: this training started on {before['device']}, and {now['device']} would change "
            f"the result. Set train.device={before['device']}, and for cuda train.gpus_per_worker so that each worker "
            "has a GPU or a fraction of one."
        )
    if before["threads"] != now["threads"]:
        raise UserError(
            f"train.deterministic=true: this training started with {before['threads']} threads per worker, and "
            f"{now['threads']} would change the result. Set train.threads_per_worker={before['threads']}."
        )
    if before != now:
        text = f"deterministic training moved from {before['processor']} to {now['processor']}: bits may differ"
        emit(TrainingWarning(training.step, "processor", text))


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Restrict torch to deterministic kernels in a `with` block if `enabled`; torch raises where there is none."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    memory: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # because it costs time, and nothing reads uninitialized memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill
