"""The contestants of `train_step`: a model and its optimizer, in one precision and memory format.

Ours and the flat module differ only in how they compute their loss: images and noise are drawn beforehand, and the
update of the weights is the same code.
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

FLOAT32_TOLERANCE, BF16_TOLERANCE = 1e-4, 2e-2  # relative
_TRAIN, _OBJECTIVE, _PROGRESSIVE = TrainConfig(), ObjectiveConfig(), ProgressiveConfig()
_FIRST_STEP = _OBJECTIVE.warmup_steps // 2  # with a KL weight between 0 and 1
_BATCHES = 4  # used in turn
_LEARNING_RATE = 1e-4  # small enough for any number of steps


@dataclass(frozen=True)
class Variant:
    """How a step is computed."""

    channels_last: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of weights and images, because a convolution is contiguous only if both are."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Batches:
    """Images and noise that every contestant trains on."""

    device: torch.device
    images: list[Tensor]  # uint8 (B, 3, H, W), channels last
    noise: list[list[Tensor]]  # of each rung, for each batch


def draw_batches(batch: int, size: int, dims: Sequence[int], seed: int, device: torch.device) -> Batches:
    """Return smooth random images and noise on the device, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    images, noise = [], []
    for _ in range(_BATCHES):
        waves = torch.rand(batch, 3, 9, 9, generator=generator)
        smooth = F.interpolate(waves, size=(size, size), mode="bicubic").mul(255).clamp(0, 255)
        images.append(smooth.to(device, torch.uint8).contiguous(memory_format=torch.channels_last))
        noise.append([torch.randn(batch, dim, generator=generator).to(device) for dim in dims])
    return Batches(device, images, noise)


LossOf = Callable[[nn.Module, Tensor, list[Tensor], int, TrainConfig], Tensor]


def ladder_loss(module: nn.Module, pixels: Tensor, noise: list[Tensor], step: int, config: TrainConfig) -> Tensor:
    """Return our loss, as `jobs.training.step` computes it."""
    schedule = rung_schedule(_OBJECTIVE, _PROGRESSIVE, step, len(noise))
    with autocast(config, pixels.device):
        terms = module(pixels, noise)
    return objective_loss(terms, schedule.kl_weights, _OBJECTIVE)


def flat_loss(module: nn.Module, pixels: Tensor, noise: list[Tensor], step: int, config: TrainConfig) -> Tensor:
    """Return the loss of the flat module, as a short script computes it."""
    with autocast(config, pixels.device):
        return module(pixels, noise, min(1.0, step / _OBJECTIVE.warmup_steps))


class Trainer:
    """A copy of a model that is trained.

    Args:
        model: Model to copy.
        loss_of: Loss of the module, pixels, noise, step and precision.
        variant: How the steps are computed.
        batches: Batches to train on, converted to the variant's memory format beforehand.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, variant: Variant, batches: Batches) -> None:
        self.model = copy.deepcopy(model).to(batches.device, memory_format=variant.memory_format)
        self.variant, self.first_loss = variant, math.nan
        self._loss_of, self._batches = loss_of, batches
        self._module = torch.compile(self.model) if variant.compiled else self.model
        self._images = [batch.contiguous(memory_format=variant.memory_format) for batch in batches.images]
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=_LEARNING_RATE,
            betas=(0.9, _TRAIN.adam_beta2),
            weight_decay=_TRAIN.weight_decay,
            fused=True,
        )
        self._config = TrainConfig(precision=variant.precision)
        self._steps = count(_FIRST_STEP)

    def loss(self, step: int = _FIRST_STEP) -> Tensor:
        """Return the loss of the batch of that step, nats per image."""
        index = step % _BATCHES
        pixels = to_device(self._images[index], self._batches.device)
        return self._loss_of(self._module, pixels, self._batches.noise[index], step, self._config)

    def run(self, steps: int) -> int:
        """Make `steps` updates, wait for the device, and return the number of images."""
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
        if self._batches.device.type == "cuda":
            torch.cuda.synchronize()
        return steps * len(self._images[0])


def check_equal(model: nn.Module, flat: nn.Module, variant: Variant, batches: Batches) -> None:
    """Check that the loss and every gradient of the two modules agree.

    Raises:
        AssertionError: They differ.
    """
    ours, reference = Trainer(model, ladder_loss, variant, batches), Trainer(flat, flat_loss, variant, batches)
    loss, reference_loss = ours.loss(), reference.loss()
    loss.backward()
    reference_loss.backward()
    loss_gap = abs(1 - loss.item() / reference_loss.item())
    gradients = [
        ((parameter.grad - expected.grad).norm() / expected.grad.norm()).item()
        for parameter, expected in zip(ours.model.parameters(), reference.model.parameters(), strict=True)
    ]
    tolerance = FLOAT32_TOLERANCE if variant.precision == "fp32" else BF16_TOLERANCE
    order = "channels last" if variant.channels_last else "contiguous"
    print(
        f"{variant.precision}, {order}: ours and the flat module differ by {loss_gap:.1e} in the loss and at most ",
        end="",
    )
    print(f"{max(gradients):.1e} in the gradients of {len(gradients)} parameters (relative)")
    if not all(gap <= tolerance for gap in (loss_gap, *gradients)):
        raise AssertionError(f"the flat module is another model: {tolerance:g} is allowed")
