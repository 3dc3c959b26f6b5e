"""The training loop: plain torch, the same on one CPU and on many GPUs. It knows nothing of Ray."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.board import Committed, Message, Point, Started
from jobs.checkpoint import latest_checkpoint, restore, save_checkpoint
from jobs.config import TrainConfig
from jobs.data.loader import BatchLoader, ShardedSplit
from jobs.data.mixing import mix64
from jobs.errors import UserError
from vlae.build import build_model
from vlae.config import HvaeConfig, ObjectiveConfig, VlaeConfig
from vlae.models.base import HierarchicalModel, Latents, Terms
from vlae.objective import kl_weight, objective_loss

_VALIDATION_IMAGES = 512
_VALIDATION_STEP = 2**62  # keys the noise of validation: a step that training never reaches


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to know. Folders are absolute and seen by every worker."""

    model: VlaeConfig | HvaeConfig
    objective: ObjectiveConfig
    train: TrainConfig
    seed: int
    data_folder: Path
    checkpoint_folder: Path


@dataclass(frozen=True)
class Worker:
    """This process among the others."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, where there are several


def train_model(job: TrainJob, worker: Worker, post: Callable[[Message], None]) -> Path:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        job: what to train.
        worker: which share of each batch to compute, and where.
        post: receives the curve and the commits; called on rank 0 only.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UserError: the data is missing or damaged, or no step had a finite gradient.
    """
    data = ShardedSplit(job.data_folder, "train")
    loader = BatchLoader(
        data,
        seed=job.seed,
        batch_size=job.train.batch_size,
        num_slices=job.train.num_slices,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    model = build_model(job.model, data.image_shape, job.seed)
    model = model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=job.train.weight_decay, fused=True)
    newest = latest_checkpoint(job.checkpoint_folder)
    step, curve = 0, Curve(worker, len(model.latent_dims), post)
    if newest is not None:
        restored = restore(newest, model, optimizer)
        step, curve.history = restored.step, restored.history
    curve.started(step)
    module = worker.wrap(torch.compile(model) if job.train.compile else model)  # type: ignore[arg-type]
    validation = _Validation(job, worker) if worker.rank == 0 else None
    while step < job.train.steps:
        values = train_step(job, worker, model, module, optimizer, loader, step)
        step += 1
        curve.add(values, step, loader.batch_size, log=step % job.train.log_every == 0 or step == job.train.steps)
        if step % job.train.checkpoint_every == 0 or step == job.train.steps:
            if validation is not None:
                curve.point(step, validation.score(model))
                newest = save_checkpoint(
                    job.checkpoint_folder,
                    step=step,
                    model=model,
                    model_config=job.model,
                    optimizer=optimizer,
                    history=curve.history,
                    data_fingerprint=data.manifest.fingerprint,
                    keep=job.train.keep_checkpoints,
                )
                post(Committed(step))
            curve.restart_clock()
    if newest is None:
        raise UserError(f"no checkpoint in {job.checkpoint_folder}")
    return newest


def train_step(
    job: TrainJob,
    worker: Worker,
    model: HierarchicalModel,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: BatchLoader,
    step: int,
) -> Tensor:
    """One update of the weights.

    Returns:
        float64 (4 + L,) on the CPU: loss, reconstruction, gradient norm, 1 if the update was skipped
        because the gradient was not finite, then the KL of each rung. Nats per image of this worker's share.
    """
    config = job.train
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    images = to_device(loader.images(step), worker.device)
    noise = slice_noise(model, loader, job.seed, step, worker.device)
    with autocast(config, worker.device):
        terms: Terms = module(images, noise)
    loss = objective_loss(terms, kl_weight(job.objective, step))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), config.grad_clip)
    skipped = not math.isfinite(norm.item())
    if not skipped:
        optimizer.step()
    head = torch.stack([loss.detach(), terms.reconstruction.detach().mean(), norm, torch.tensor(float(skipped))])
    return torch.cat([head, terms.kl.detach().mean(0)]).double().cpu()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero at the last step."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    progress = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images to float32 in [0, 1] on the device; the bytes travel, the floats do not."""
    return images.to(device, non_blocking=True).float().div_(255)


def slice_noise(model: HierarchicalModel, loader: BatchLoader, seed: int, step: int, device: torch.device) -> Latents:
    """The noise of this worker's slices: a function of (seed, step, slice), whoever computes the slice."""
    parts = []
    for number in loader.slices:
        key = int(mix64(seed, step, number)) >> 1
        parts.append(model.noise(loader.slice_size, torch.Generator(device).manual_seed(key)))
    return [torch.cat(rung) for rung in zip(*parts, strict=True)]


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of the networks; likelihood and KL are computed in float32 whatever it is."""
    if config.precision == "bf16" or (config.precision == "auto" and _native_bf16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return False
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class Curve:
    """Averages what the steps return, and posts a point from time to time."""

    def __init__(self, worker: Worker, num_rungs: int, post: Callable[[Message], None]) -> None:
        self.history: list[Point] = []
        self._worker, self._post, self._num_rungs = worker, post, num_rungs
        self._sum, self._steps = torch.zeros(4 + num_rungs, dtype=torch.float64), 0
        self._skipped = 0.0
        self._clock, self._images = time.monotonic(), 0

    def started(self, step: int) -> None:
        """Say where this worker group begins."""
        if self._worker.rank == 0:
            self._post(Started(step, self.history))

    def restart_clock(self) -> None:
        """Leave the time of a checkpoint out of images/s."""
        self._clock, self._images = time.monotonic(), 0

    def add(self, values: Tensor, step: int, images: int, *, log: bool) -> None:
        """Take in one step; every worker must call this with the same `log`, which adds up the workers."""
        finite = values[3] == 0
        self._sum += torch.where(finite, values, torch.zeros_like(values))
        self._steps += int(finite)
        self._skipped += float(values[3])
        self._images += images
        if not log:
            return
        mean = self._mean_over_workers()
        seconds = time.monotonic() - self._clock
        self.point(
            step,
            {
                "train/loss": mean[0],
                "train/reconstruction": mean[1],
                "train/grad_norm": mean[2],
                "train/skipped_steps": self._skipped,
                "train/kl": sum(mean[4:]),
                **{f"train/kl_rung_{rung}": value for rung, value in enumerate(mean[4:])},
                "train/images_per_second": self._images / max(seconds, 1e-9),
            },
        )
        self._sum.zero_()
        self._steps = 0
        self.restart_clock()

    def _mean_over_workers(self) -> list[float]:
        mean = self._sum / max(1, self._steps)
        if self._worker.world_size > 1:
            total = mean.to(self._worker.device)
            torch.distributed.all_reduce(total)
            mean = total.cpu() / self._worker.world_size
        result: list[float] = mean.tolist()
        return result

    def point(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point to the history and post it."""
        if self._worker.rank == 0:
            point = Point(step, time.time_ns() // 1_000_000, metrics)
            self.history.append(point)
            self._post(point)


class _Validation:
    """The ELBO of the same few validation images with the same noise, every time."""

    def __init__(self, job: TrainJob, worker: Worker) -> None:
        try:
            data = ShardedSplit(job.data_folder, "validation")
        except UserError:
            self._images = None
            return
        numbers = np.arange(min(len(data), _VALIDATION_IMAGES))
        self._images = to_device(data.images(numbers), worker.device)
        self._key = int(mix64(job.seed, _VALIDATION_STEP)) >> 1

    @torch.no_grad()
    def score(self, model: HierarchicalModel) -> dict[str, float]:
        """Negative reconstruction minus KL, nats per image; nothing if there is no validation split."""
        if self._images is None:
            return {}
        generator = torch.Generator(self._images.device).manual_seed(self._key)
        terms = model(self._images, model.noise(len(self._images), generator))
        return {"validation/elbo": -float((terms.reconstruction + terms.kl.sum(1)).mean())}
