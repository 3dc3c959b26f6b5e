"""The training loop: plain torch, the same on one CPU and on many GPUs. It knows nothing of Ray."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.checkpoint import Restored, latest_checkpoint, restore, save_checkpoint
from jobs.config import TrainConfig
from jobs.curve import Curve
from jobs.data.loader import BatchLoader
from jobs.data.mixing import mix64
from jobs.data.order import Order
from jobs.data.shard_files import DataAccess
from jobs.data.split import ShardedSplit
from jobs.device import autocast, to_device
from jobs.ema import average_weights, averaged_model
from jobs.messages import Committed, Message, Opened, Point
from jobs.validation import Validation
from vlae.build import build_model
from vlae.config import AnyModelConfig, ObjectiveConfig, ProgressiveConfig
from vlae.models.base import HierarchicalModel, Latents, Terms
from vlae.models.vlae import Vlae
from vlae.objective import objective_loss
from vlae.schedule import rung_state

_PRIOR = 2**61  # added to the step, it keys the samples of the prior that the MMD looks at


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to know. Folders are absolute and seen by every worker."""

    model: AnyModelConfig
    objective: ObjectiveConfig
    progressive: ProgressiveConfig
    train: TrainConfig
    seed: int
    data: DataAccess
    checkpoint_folder: Path


@dataclass(frozen=True)
class Worker:
    """This process among the others."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, where there are several


@dataclass
class Training:
    """A training under way on one worker."""

    job: TrainJob
    worker: Worker
    loader: BatchLoader
    model: HierarchicalModel
    module: nn.Module  # the model as it is called: compiled and distributed where asked for
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None  # of the weights, if asked for
    step: int  # updates made
    history: list[Point]  # the curve so far
    checkpoint: Path | None  # the newest


def train_model(job: TrainJob, worker: Worker, post: Callable[[Message], None]) -> Path:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        job: what to train.
        worker: which share of each batch to compute, and where.
        post: receives the curve and the commits; called on rank 0 only.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UserError: the data is missing or damaged.
    """
    training = prepare(job, worker)
    curve = Curve(worker.rank, worker.world_size, worker.device, training.history, post)
    curve.started(training.step)
    manifest = training.loader.data.manifest
    validation = Validation(job.data, manifest, worker.device, job.seed) if worker.rank == 0 else None
    for opened, total in training.loader.open(training.step):
        if worker.rank == 0:
            post(Opened(opened, total))
    config = job.train
    for images in training.loader.batches(training.step, config.steps):
        values = train_step(training, images)
        training.step += 1
        last = training.step == config.steps
        curve.add(values, training.step, config.batch_size, log=last or training.step % config.log_every == 0)
        if last or training.step % config.checkpoint_every == 0:
            if validation is not None:
                curve.point(training.step, validation.score(averaged_model(training.ema, training.model)))
                training.checkpoint = _save(training)
                post(Committed(training.step))
            curve.restart_clock()
    return training.checkpoint or job.checkpoint_folder


def prepare(job: TrainJob, worker: Worker) -> Training:
    """Data, model and optimiser, as the newest whole checkpoint left them.

    Raises:
        UserError: the data is missing or damaged.
    """
    config, data = job.train, ShardedSplit(job.data, "train")
    resident = keeps_resident(config, data, worker.device)
    if resident is None:
        data.check_room(config.shuffle_window, config.batch_size)
    order = Order(data.shard_sizes, batch_size=config.batch_size, seed=job.seed, window=config.shuffle_window)
    loader = BatchLoader(
        data,
        order,
        num_slices=config.num_slices,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        resident=resident,
    )
    model = build_model(job.model, data.image_shape, job.seed)
    model = model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True)
    ema = average_weights(model, config.ema_decay)
    newest = latest_checkpoint(job.checkpoint_folder)
    restored = restore(newest, model, optimizer, ema) if newest else Restored(0, [])
    module = worker.wrap(torch.compile(model) if config.compile else model)  # type: ignore[arg-type]
    return Training(job, worker, loader, model, module, optimizer, ema, restored.step, restored.history, newest)


def keeps_resident(config: TrainConfig, data: ShardedSplit, device: torch.device) -> torch.device | None:
    """Where all training images are kept, if they are."""
    if config.resident == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return device if data.num_bytes <= free / 4 else None
    return {"ram": torch.device("cpu"), "device": device}.get(config.resident)


def _save(training: Training) -> Path:
    return save_checkpoint(
        training.job.checkpoint_folder,
        step=training.step,
        model=training.model,
        model_config=training.job.model,
        optimizer=training.optimizer,
        ema=training.ema,
        history=training.history,
        data_fingerprint=training.loader.data.manifest.fingerprint,
        keep=training.job.train.keep_checkpoints,
    )


def train_step(training: Training, images: Tensor) -> Tensor:
    """One update of the weights, by this worker's uint8 images of the step.

    Returns:
        float64 (4 + L,) on the CPU: loss, reconstruction, gradient norm, 1 if the update was skipped
        because the gradient was not finite, then the KL of each rung. Nats per image of this worker's share.
    """
    job, device, step = training.job, training.worker.device, training.step
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(job.train, step)
    pixels = to_device(images, device)
    noise = slice_noise(training.model, training.loader, job.seed, step, device)
    state = rung_state(job.objective, job.progressive, step, len(training.model.latent_dims))
    if job.progressive.stage_steps:
        for model in (training.model, averaged_model(training.ema, training.model)):
            if isinstance(model, Vlae):
                model.set_fade(state.reads, state.writes)
    with autocast(job.train, device):
        terms: Terms = training.module(pixels, noise)
    wanted = job.objective.mmd > 0
    prior = slice_noise(training.model, training.loader, job.seed, _PRIOR + step, device) if wanted else None
    loss = objective_loss(terms, state.kl_weights, job.objective, prior)
    training.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), job.train.grad_clip)
    skipped = not math.isfinite(norm.item())
    if not skipped:
        training.optimizer.step()
        if training.ema is not None:
            training.ema.update_parameters(training.model)
    head = [loss.detach(), terms.reconstruction.detach().mean(), norm, torch.tensor(float(skipped), device=device)]
    return torch.cat([torch.stack(head), terms.kl.detach().mean(0)]).double().cpu()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero at the last step, or no change."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def slice_noise(model: HierarchicalModel, loader: BatchLoader, seed: int, step: int, device: torch.device) -> Latents:
    """The noise of this worker's slices: a function of (seed, step, slice), whoever computes the slice."""
    parts = []
    for number in loader.slices:
        key = int(mix64(seed, step, number)) >> 1
        parts.append(model.noise(loader.slice_size, torch.Generator(device).manual_seed(key)))
    return [torch.cat(rung) for rung in zip(*parts, strict=True)]
