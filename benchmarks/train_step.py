"""One training step of the 64x64 VLAE: the cost of its structure and the gain of the default settings.

    python -m benchmarks.train_step [batch=64] [size=64] [width=32] [steps=3] [rounds=9] [threads=N] [compile=false]

A step is the forward pass, the loss, the backward pass, the clipping and fused AdamW. All contestants start from the
same weights and see the same images, noise and KL weights.

- flat: the network as one handwritten module, `flat_vlae.py`, in the same precision and memory format.
- plain: float32, contiguous, eager. The others change the memory format (channels_last), the precision (bf16 autocast),
  or both, which is the default where the device computes bf16 natively; or compile on top of that.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from benchmarks.flat_vlae import FlatVlae, copy_weights
from benchmarks.harness import (
    CommonSettings,
    Contestant,
    Times,
    machine,
    measure,
    ratios,
    read_settings,
    spread,
    verdict,
    workplace,
)
from benchmarks.trainers import (
    BF16_TOLERANCE,
    Batches,
    Trainer,
    Variant,
    check_equal,
    draw_batches,
    flat_loss,
    ladder_loss,
)
from jobs.device import native_bf16
from vlae.config import VlaeConfig
from vlae.models.factory import build_model

_PLAIN, _DEFAULT, _COMPILED, _FLAT = "plain", "default", "default, compiled", ", flat"
_CUDA_STEPS = 20  # times as many steps on CUDA, where they are that much shorter
_WARM_UP = 2  # steps after the first
_PACKAGES = ("torch", "numpy")


class StepSettings(CommonSettings):
    """Settings of the benchmark, given as key=value overrides."""

    batch: int = Field(64, ge=1, description="images of a step")
    size: int = Field(64, ge=64, le=112, multiple_of=16, description="side of the images, pixels: 64, 80, 96 or 112")
    width: int = Field(32, ge=8, multiple_of=8, description="channels at half resolution")
    steps: int = Field(3, ge=1, description=f"steps of one contestant in a round; {_CUDA_STEPS} times as many on CUDA")
    rounds: int = Field(9, ge=1, description="rounds over all contestants; medians are printed")
    threads: int = Field(len(os.sched_getaffinity(0)), ge=1, description="torch threads, for every contestant")
    compile: bool = Field(True, description="also measure torch.compile")


def variants(settings: StepSettings, device: torch.device) -> dict[str, Variant]:
    """Return the variants that this machine can compute, and print which it cannot."""
    bf16 = native_bf16(device)
    best: Literal["bf16", "fp32"] = "bf16" if bf16 else "fp32"
    possible = {_PLAIN: Variant(), "channels_last": Variant(channels_last=True), "bf16": Variant(precision="bf16")}
    possible |= {_DEFAULT: Variant(True, best), _COMPILED: Variant(True, best, compiled=True)}
    if not bf16:
        print(f"no bf16: {device.type} does not compute it natively; the default is channels_last")
        del possible["bf16"], possible["channels_last"]
    compiler = os.environ.get("CXX", "g++")
    if not settings.compile or shutil.which(compiler) is None:
        print("no torch.compile: " + (f"{compiler} not found" if settings.compile else "compile=false"))
        del possible[_COMPILED]
    return possible


def contestants(settings: StepSettings, batches: Batches, model: nn.Module, flat: nn.Module) -> list[Contestant]:
    """Return all contestants, warmed up; the plain and the default variant are followed by the flat module."""
    trainers: dict[str, Trainer] = {}
    for name, variant in variants(settings, batches.device).items():
        trainers[name] = Trainer(model, ladder_loss, variant, batches)
        if name in (_PLAIN, _DEFAULT):
            check_equal(model, flat, variant, batches)
            trainers[name + _FLAT] = Trainer(flat, flat_loss, variant, batches)
    steps = settings.steps * (_CUDA_STEPS if batches.device.type == "cuda" else 1)
    entrants = []
    for name, trainer in trainers.items():
        start = time.perf_counter()
        trainer.run(1)
        if trainer.variant.compiled:
            print(f"{name}: cold start, with its first step {time.perf_counter() - start:.1f} s")
        trainer.run(_WARM_UP)
        entrants.append(Contestant(name, lambda trainer=trainer: trainer.run(steps)))
    first_losses = [trainer.first_loss for trainer in trainers.values()]
    if max(first_losses) > min(first_losses) * (1 + BF16_TOLERANCE):
        raise AssertionError(f"the first losses differ: {first_losses}")
    return entrants


def table(times: dict[str, Times], batch: int) -> str:
    """Return a table of the wall time of a step and its speed relative to the plain variant."""
    width = max(map(len, times))
    lines = [f"{'':{width}} {'ms/step wall':>22} {'images/s':>10} {'x speed of plain':>20}"]
    for name, taken in times.items():
        step = spread([wall * batch / 1e3 for wall in taken.wall])
        faster = spread(ratios(times[_PLAIN], taken, "wall"))
        lines.append(f"{name:{width}} {step:>22} {1e6 / median(taken.wall):>10,.0f} {faster:>20}")
    return "\n".join(lines)


def targets(times: dict[str, Times], device: torch.device) -> str:
    """Return the comparison with the project's targets for its training step."""
    lines = []
    for name in (_DEFAULT, _PLAIN):
        relative = ratios(times[name], times[name + _FLAT], "wall")
        lines.append(
            verdict(
                f"structure is free: time of a step, {name}, relative to the flat module's",
                relative,
                1.05,
                at_most=True,
            )
        )
    faster = ratios(times[_PLAIN], times[_DEFAULT], "wall")
    if device.type == "cpu":
        lines.append(verdict("default on the CPU: times faster than plain", faster, 1.6))
    return "\n".join(lines)


def run(settings: StepSettings, folder: Path, device: torch.device) -> None:
    """Check, measure and print."""
    config = VlaeConfig(latent_dims=(4, 4, 4, 10), width=settings.width)
    model = build_model(config, (3, settings.size, settings.size), settings.seed)
    flat = FlatVlae(settings.width, settings.size)
    copy_weights(model, flat)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{device.type}: {parameters:,} parameters, {settings.batch} images of {settings.size}x{settings.size}")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / device.type)  # so that every run starts cold
    batches = draw_batches(settings.batch, settings.size, config.latent_dims, settings.seed, device)
    times = measure(contestants(settings, batches, model, flat), settings.rounds, alternate=True)
    print(table(times, settings.batch))
    print(targets(times, device))


def main(settings: StepSettings, folder: Path) -> None:
    """Run on the CPU, and on the GPU if there is one."""
    print(machine(folder, _PACKAGES))
    run(settings, folder, torch.device("cpu"))
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        torch.set_float32_matmul_precision("high")  # as training workers do
        run(settings, folder, torch.device("cuda"))


if __name__ == "__main__":
    parsed = read_settings(sys.argv[1:], StepSettings)
    with workplace(parsed) as temporary:
        main(parsed, temporary)
