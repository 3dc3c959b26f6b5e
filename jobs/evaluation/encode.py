"""A split as a model sees it: posteriors, samples of them, and the terms of the ELBO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.device import to_device
from vlae.metrics import ACTIVE
from vlae.models.base import HierarchicalModel, Inference, Latents, eval_batch_size

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Encodings:
    """Of N images; lists run over the rungs, bottom first."""

    means: list[Array]  # (N, D_l), each rung given the means of those it depends on
    samples: list[Array]  # (N, D_l)
    sampled_posterior_means: list[Array]  # means of the posteriors that the samples were drawn from
    log_sigmas: list[Array]
    kl_dims: list[Array]  # (N, D_l) nats
    reconstruction: Array  # (N,) nats
    collapsed_kl: float  # nats that a latent costs which tells nothing

    @property
    def threshold(self) -> float:
        """Mean KL in nats above which a latent is in use."""
        return self.collapsed_kl + ACTIVE

    @property
    def mean_kl(self) -> list[Array]:
        """(D_l,) nats, over the images."""
        return [kl.mean(axis=0) for kl in self.kl_dims]

    @property
    def finite(self) -> bool:
        """Whether the ELBO of every image is a number."""
        return all(bool(np.isfinite(terms).all()) for terms in (self.reconstruction, *self.kl_dims))


@torch.no_grad()
def rung_codes(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> tuple[list[Array], list[Array]]:
    """Only the means and the samples of `encode`, (N, D_l) per rung each, without decoding any."""
    means, samples = [], []
    for chunk in torch.split(images, eval_batch_size(generator.device)):
        pixels = to_device(chunk, generator.device)
        drawn = model.infer(pixels, model.noise(len(pixels), generator))
        samples.append(drawn.latents)
        means.append(_means(model, drawn, pixels))
    return _joined(means), _joined(samples)


@torch.no_grad()
def rung_means(model: HierarchicalModel, images: Tensor) -> list[Array]:
    """Only the means of `encode`, (N, D_l) per rung, of uint8 images (N, C, H, W)."""
    device = next(model.parameters()).device
    return _joined([model.means(to_device(chunk, device)) for chunk in torch.split(images, eval_batch_size(device))])


@torch.no_grad()
def encode(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> Encodings:
    """Codes of uint8 images (N, C, H, W); the generator is on the model's device."""
    parts: dict[str, list[Latents]] = {
        name: [] for name in ("means", "samples", "sampled_posterior_means", "log_sigmas", "kl_dims")
    }
    reconstruction = []
    for chunk in torch.split(images, eval_batch_size(generator.device)):
        pixels = to_device(chunk, generator.device)
        drawn = model.infer(pixels, model.noise(len(pixels), generator))
        reconstruction.append(model.likelihood.nll(model.decode(drawn.latents), pixels))
        parts["means"].append(_means(model, drawn, pixels))
        parts["samples"].append(drawn.latents)
        parts["sampled_posterior_means"].append([posterior.mean for posterior in drawn.posteriors])
        parts["log_sigmas"].append([posterior.log_sigma for posterior in drawn.posteriors])
        parts["kl_dims"].append(drawn.kl_dims)
    rungs = {name: _joined(batches) for name, batches in parts.items()}
    return Encodings(**rungs, reconstruction=torch.cat(reconstruction).cpu().numpy(), collapsed_kl=model.collapsed_kl)


def _means(model: HierarchicalModel, drawn: Inference, pixels: Tensor) -> Latents:
    """`model.means`, without another inference where the one that was drawn has them."""
    return [q.mean for q in drawn.posteriors] if model.independent_posteriors else model.means(pixels)


def _joined(batches: Sequence[Latents]) -> list[Array]:
    """One array per rung."""
    return [torch.cat(rung).cpu().numpy() for rung in zip(*batches, strict=True)]
