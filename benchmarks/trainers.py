"""The contestants of `train_step`: a model and its optimizer, in one precision and memory order.

Ours and the flat peer differ in how they come to their loss, and in nothing else: the images and the noise are drawn
beforehand, and the update of the weights is the same code.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.device import autocast, to_device
from vlae.config import ObjectiveConfig, ProgressiveConfig
from vlae.objective import objective_loss
from vlae.schedule import rung_schedule

EXACT, ROUNDED = 1e-4, 2e-2  # how far two computations may be apart in float32, and in bf16
_TRAIN, _OBJECTIVE, _PROGRESSIVE = TrainConfig(), ObjectiveConfig(), ProgressiveConfig()
_FIRST_STEP = _OBJECTIVE.warmup_steps // 2  # the KL's weight is neither 0 nor 1
_BATCHES = 4  # taken in turn
_LEARNING_RATE = 1e-4  # small enough for any number of steps


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    channels_last: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    compiled: bool = False

    @property
    def order(self) -> torch.memory_format:
        """Of the weights and of the images: a convolution is contiguous only if both are."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Work:
    """What everyone trains on."""

    device: torch.device
    images: list[Tensor]  # uint8 (B, 3, H, W), channels last
    noise: list[list[Tensor]]  # of each rung, for each batch


def draw_work(batch: int, size: int, dims: Sequence[int], seed: int, device: torch.device) -> Work:
    """Smooth random images, and noise: the same on every device, where they lie ready."""
    generator = torch.Generator().manual_seed(seed)
    images, noise = [], []
    for _ in range(_BATCHES):
        waves = torch.rand(batch, 3, 9, 9, generator=generator)
        smooth = F.interpolate(waves, size=(size, size), mode="bicubic").mul(255).clamp(0, 255)
        images.append(smooth.to(device, torch.uint8).contiguous(memory_format=torch.channels_last))
        noise.append([torch.randn(batch, dim, generator=generator).to(device) for dim in dims])
    return Work(device, images, noise)


LossOf = Callable[[nn.Module, Tensor, list[Tensor], int, TrainConfig], Tensor]


def ladder_loss(module: nn.Module, pixels: Tensor, noise: list[Tensor], step: int, config: TrainConfig) -> Tensor:
    """Ours, as `jobs.training.loop` has it."""
    state = rung_schedule(_OBJECTIVE, _PROGRESSIVE, step, len(noise))
    with autocast(config, pixels.device):
        terms = module(pixels, noise)
    return objective_loss(terms, state.kl_weights, _OBJECTIVE)


def flat_loss(module: nn.Module, pixels: Tensor, noise: list[Tensor], step: int, config: TrainConfig) -> Tensor:
    """The peer's, as a short script has it."""
    with autocast(config, pixels.device):
        return module(pixels, noise, min(1.0, step / _OBJECTIVE.warmup_steps))


class Trainer:
    """A copy of a model under training.

    Args:
        model: stays as it is.
        loss_of: of the module, pixels, noise, step and precision.
        way: how the steps are computed.
        work: what to train on; each batch is laid out beforehand as the way wants it.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, way: Way, work: Work) -> None:
        self.model = copy.deepcopy(model).to(work.device, memory_format=way.order)
        self.way, self.first_loss = way, math.nan
        self._loss_of, self._work = loss_of, work
        self._module = torch.compile(self.model) if way.compiled else self.model
        self._images = [batch.contiguous(memory_format=way.order) for batch in work.images]
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=_LEARNING_RATE,
            betas=(0.9, _TRAIN.adam_beta2),
            weight_decay=_TRAIN.weight_decay,
            fused=True,
        )
        self._config = TrainConfig(precision=way.precision)
        self._steps = count(_FIRST_STEP)

    def loss(self, step: int = _FIRST_STEP) -> Tensor:
        """Of the batch of that step, nats per image."""
        turn = step % _BATCHES
        pixels = to_device(self._images[turn], self._work.device)
        return self._loss_of(self._module, pixels, self._work.noise[turn], step, self._config)

    def run(self, steps: int) -> int:
        """So many updates, to their end on the device; returns the number of images."""
        for step in (next(self._steps) for _ in range(steps)):
            loss = self.loss(step)
            self._optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), _TRAIN.max_grad_norm)
            if not math.isfinite(norm.item()):
                raise AssertionError("the gradient is not finite")
            self._optimizer.step()
            if step == _FIRST_STEP:
                self.first_loss = loss.item()
        if self._work.device.type == "cuda":
            torch.cuda.synchronize()
        return steps * len(self._images[0])


def check_equal(model: nn.Module, flat: nn.Module, way: Way, work: Work) -> None:
    """The loss and every gradient of the two agree.

    Raises:
        AssertionError: they do not.
    """
    ours, peer = Trainer(model, ladder_loss, way, work), Trainer(flat, flat_loss, way, work)
    mine, other = ours.loss(), peer.loss()
    mine.backward()
    other.backward()
    loss_gap = abs(1 - mine.item() / other.item())
    gradients = [
        ((one.grad - two.grad).norm() / two.grad.norm()).item()
        for one, two in zip(ours.model.parameters(), peer.model.parameters(), strict=True)
    ]
    tolerance = EXACT if way.precision == "fp32" else ROUNDED
    order = "channels last" if way.channels_last else "contiguous"
    print(
        f"{way.precision}, {order}: ours and the flat module differ by {loss_gap:.1e} in the loss and at most ", end=""
    )
    print(f"{max(gradients):.1e} in the gradients of {len(gradients)} parameters (relative)")
    if not all(gap <= tolerance for gap in (loss_gap, *gradients)):
        raise AssertionError(f"the flat module is another model: {tolerance:g} is allowed")
