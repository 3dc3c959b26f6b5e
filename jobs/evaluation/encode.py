"""Encode a split with a model: posteriors, samples of them, and the terms of the ELBO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.device import to_device
from vlae.metrics import SONDERBY_ACTIVE_KL
from vlae.models.base import HierarchicalModel, Inference, Latents, eval_batch_size

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Encodings:
    """Posteriors and ELBO terms of N images. Lists run over the rungs, bottom first.

    Attributes:
        means: Posterior means (N, D_l), each rung conditioned on the means of the rungs that it depends on.
        samples: Posterior samples (N, D_l).
        sampled_posterior_means: Means (N, D_l) of the posteriors that `samples` were drawn from.
        log_sigmas: Logarithms (N, D_l) of the standard deviations of these posteriors.
        kl_dims: KL of each latent (N, D_l), nats.
        reconstruction: Negative log-likelihood of each image (N,), nats.
        collapsed_kl: KL of a collapsed latent, nats.
    """

    means: list[Array]
    samples: list[Array]
    sampled_posterior_means: list[Array]
    log_sigmas: list[Array]
    kl_dims: list[Array]
    reconstruction: Array
    collapsed_kl: float

    @property
    def threshold(self) -> float:
        """Mean KL in nats above which a latent is active."""
        return self.collapsed_kl + SONDERBY_ACTIVE_KL

    @property
    def mean_kl(self) -> list[Array]:
        """Mean KL of each latent over the images, (D_l,) per rung, nats."""
        return [kl.mean(axis=0) for kl in self.kl_dims]

    @property
    def finite(self) -> bool:
        """Whether the ELBO of every image is finite."""
        return all(bool(np.isfinite(terms).all()) for terms in (self.reconstruction, *self.kl_dims))


@torch.no_grad()
def means_and_samples(
    model: HierarchicalModel, images: Tensor, generator: torch.Generator
) -> tuple[list[Array], list[Array]]:
    """Return posterior means and samples as `encode` does, (N, D_l) per rung, bottom first, without decoding images."""
    means, samples = [], []
    for chunk in torch.split(images, eval_batch_size(generator.device)):
        pixels = to_device(chunk, generator.device)
        inference = model.infer(pixels, model.noise(len(pixels), generator))
        samples.append(inference.latents)
        means.append(_means(model, inference, pixels))
    return _concatenate(means), _concatenate(samples)


@torch.no_grad()
def rung_means(model: HierarchicalModel, images: Tensor) -> list[Array]:
    """Return the posterior means (N, D_l) per rung, bottom first, of images (N, C, H, W) uint8."""
    device = next(model.parameters()).device
    chunks = torch.split(images, eval_batch_size(device))
    return _concatenate([model.means(to_device(chunk, device)) for chunk in chunks])


@torch.no_grad()
def encode(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> Encodings:
    """Return posteriors, samples and ELBO terms of images (N, C, H, W) uint8, with a generator on the model's device.

    The means do not depend on the batch size.
    """
    fields: dict[str, list[Latents]] = {
        name: [] for name in ("means", "samples", "sampled_posterior_means", "log_sigmas", "kl_dims")
    }
    reconstruction = []
    for chunk in torch.split(images, eval_batch_size(generator.device)):
        pixels = to_device(chunk, generator.device)
        inference = model.infer(pixels, model.noise(len(pixels), generator))
        reconstruction.append(model.likelihood.nll(model.decode(inference.latents), pixels))
        fields["means"].append(_means(model, inference, pixels))
        fields["samples"].append(inference.latents)
        fields["sampled_posterior_means"].append([posterior.mean for posterior in inference.posteriors])
        fields["log_sigmas"].append([posterior.log_sigma for posterior in inference.posteriors])
        fields["kl_dims"].append(inference.kl_dims)
    rungs = {name: _concatenate(batches) for name, batches in fields.items()}
    return Encodings(**rungs, reconstruction=torch.cat(reconstruction).cpu().numpy(), collapsed_kl=model.collapsed_kl)


def _means(model: HierarchicalModel, inference: Inference, pixels: Tensor) -> Latents:
    """Return `model.means(pixels)`, without a second inference where the posteriors do not depend on samples."""
    return [q.mean for q in inference.posteriors] if model.independent_posteriors else model.means(pixels)


def _concatenate(batches: Sequence[Latents]) -> list[Array]:
    """Concatenate batches to one array per rung."""
    return [torch.cat(rung).cpu().numpy() for rung in zip(*batches, strict=True)]
