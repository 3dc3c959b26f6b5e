"""A split as a model sees it: posteriors, samples of them, and the terms of the ELBO."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.device import to_device
from vlae.models.base import HierarchicalModel, Latents

_BATCH = 256

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """Of N images; lists run over the rungs, bottom first."""

    means: list[Array]  # (N, D_l), each rung given the means of those it depends on
    samples: list[Array]  # (N, D_l)
    centres: list[Array]  # means of the posteriors that the samples were drawn from
    log_sigmas: list[Array]
    kl_dims: list[Array]  # (N, D_l) nats
    reconstruction: Array  # (N,) nats

    @property
    def finite(self) -> bool:
        """Whether the ELBO of every image is a number."""
        return all(bool(np.isfinite(terms).all()) for terms in (self.reconstruction, *self.kl_dims))


@torch.no_grad()
def draw_codes(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> list[Array]:
    """Only the samples of `encode`: one draw of each posterior, (N, D_l) per rung, without decoding any."""
    batches = []
    for start in range(0, len(images), _BATCH):
        pixels = to_device(images[start : start + _BATCH], generator.device)
        batches.append(model.infer(pixels, model.noise(len(pixels), generator)).latents)
    return [torch.cat(rung).cpu().numpy() for rung in zip(*batches, strict=True)]


@torch.no_grad()
def encode(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> Codes:
    """Codes of uint8 images (N, C, H, W); the generator is on the model's device."""
    parts: dict[str, list[Latents]] = {name: [] for name in ("means", "samples", "centres", "log_sigmas", "kl_dims")}
    reconstruction = []
    for start in range(0, len(images), _BATCH):
        pixels = to_device(images[start : start + _BATCH], generator.device)
        drawn = model.infer(pixels, model.noise(len(pixels), generator))
        reconstruction.append(model.likelihood.nll(model.decode(drawn.latents), pixels))
        parts["means"].append(model.means(pixels))
        parts["samples"].append(drawn.latents)
        parts["centres"].append([posterior.mean for posterior in drawn.posteriors])
        parts["log_sigmas"].append([posterior.log_sigma for posterior in drawn.posteriors])
        parts["kl_dims"].append(drawn.kl_dims)
    rungs = {
        name: [torch.cat(rung).cpu().numpy() for rung in zip(*batches, strict=True)] for name, batches in parts.items()
    }
    return Codes(**rungs, reconstruction=torch.cat(reconstruction).cpu().numpy())
