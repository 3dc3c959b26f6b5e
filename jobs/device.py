"""Where and in which precision a model computes."""

import ctypes
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from jobs.config import TrainConfig


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images to float32 in [0, 1] on the device; the bytes travel, the floats do not."""
    return images.to(device, non_blocking=True).float().div_(255)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of the networks; likelihood and KL are computed in float32 whatever it is."""
    if config.precision == "auto":
        return autocast_bf16(device)
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def autocast_bf16(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where the device computes it natively: for pictures and for effects that are averages over many images."""
    return torch.autocast(device.type, torch.bfloat16) if native_bf16(device) else nullcontext()


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return False
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt
_KEPT = 2**30  # bytes that may lie unused


def tune_malloc() -> None:
    """Let glibc keep what is freed instead of giving it back to the system; elsewhere this does nothing.

    A training step on a CPU frees and asks for the same hundred megabytes again. In a thread that is not the main one,
    where Ray trains, glibc maps them anew each time, and the kernel clears every page: up to a fifth of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_MAX, 0)
