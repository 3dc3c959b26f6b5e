"""The training loop: plain torch, the same on one CPU and on many GPUs. It knows nothing of Ray."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from jobs.checkpoint_writer import CheckpointWriter
from jobs.checkpoints import Checkpoints
from jobs.curve import Curve
from jobs.ema import averaged_model
from jobs.errors import UserError
from jobs.health import Health, memory_errors
from jobs.messages import Message, Opened, Stopped, Warned
from jobs.snapshot import machine, take_snapshot
from jobs.step import train_step
from jobs.training import Training, TrainJob, Worker, prepare
from jobs.validation import Validation


class StoppedError(Exception):
    """Training was asked to stop, and has, with a checkpoint."""


def train_model(job: TrainJob, worker: Worker, post: Callable[[Message], None]) -> int:
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
    with memory_errors(job.train), deterministic(job.train.exact), ExitStack() as stack:
        training = prepare(job, worker)
        _check_machine(training, post)
        for step in training.restored.passed_over:
            post(Warned(training.step, f"damaged_{step}", f"the checkpoint of step {step} is damaged and passed over"))
        idle = [training.model.idle_kl * dim for dim in training.model.latent_dims]
        curve = Curve(training, Health(job.train, job.objective, job.progressive, idle, post), post)
        for opened, total in training.loader.open(training.step):
            post(Opened(opened, total))
        validation = Validation(training)
        writer = None
        if worker.rank == 0:
            place = Checkpoints(job.checkpoints)
            writer = stack.enter_context(CheckpointWriter(place, job.train.keep_checkpoints, post))
        _run(training, curve, validation, writer, post)
    return training.step


def _run(
    training: Training,
    curve: Curve,
    validation: Validation,
    writer: CheckpointWriter | None,
    post: Callable[[Message], None],
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
            post(Stopped(step))
            raise StoppedError


def _validate(training: Training, curve: Curve, validation: Validation) -> float | None:
    """Add a point with the validation score; returns it if it is finite."""
    scores = validation.score(averaged_model(training.ema, training.model))
    curve.point(training.step, scores)
    curve.restart_clock()
    score = scores.get("validation/elbo", math.nan)
    return score if math.isfinite(score) else None


def _check_machine(training: Training, post: Callable[[Message], None]) -> None:
    """Exact training goes on with the kind of device and the threads that it began with.

    Raises:
        UserError: this worker has others.
    """
    began = training.restored.machine
    if not training.job.train.exact or began is None:
        return
    here = machine(training.worker.device)
    if began["device"] != here["device"]:
        raise UserError(
            f"train.exact=true: this training began on {began['device']} and would go on on {here['device']}, which "
            f"enters the result: set train.device={began['device']}, with a GPU or a share of one for each worker "
            "(train.gpus_per_worker) if that is cuda"
        )
    if began["threads"] != here["threads"]:
        raise UserError(
            f"train.exact=true: this training began with {began['threads']} threads per worker, which enter the "
            f"result, and would go on with {here['threads']}: set train.threads_per_worker={began['threads']}"
        )
    if began != here:
        text = f"exact training began on {began['processor']} and goes on on {here['processor']}: bits may differ"
        post(Warned(training.step, "processor", text))


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


def _say_nothing(message: Message) -> None:
    """Only rank 0 tells."""
