"""Where and in which precision a model computes."""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from jobs.config import TrainConfig


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Return uint8 images of any shape on the device as float32 in [0, 1]; the transfer moves bytes, not floats."""
    return images.to(device, non_blocking=True).float().div_(255)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast context of `train.precision`; likelihood and KL are computed in float32 in any case."""
    if config.precision == "auto":
        return autocast_bf16(device)
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def autocast_bf16(device: torch.device) -> AbstractContextManager[Any]:
    """Return a bf16 autocast context where the device computes bf16 natively, else a null context."""
    return torch.autocast(device.type, torch.bfloat16) if native_bf16(device) else nullcontext()


def native_bf16(device: torch.device) -> bool:
    """Return whether the device computes bf16 natively; emulated bf16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_MAX_FREE_BYTES = 2**30


def tune_malloc() -> None:
    """Let glibc keep freed memory instead of returning it to the system; on other libraries do nothing.

    Outside the main thread, where Ray trains, glibc otherwise maps the hundreds of megabytes of each CPU step anew, and
    the kernel clears every page: up to a fifth of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _MAX_FREE_BYTES)
        mallopt(_MMAP_MAX, 0)
