"""What every model offers, whatever its latent structure."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlae.config import HvaeConfig, VlaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.likelihoods import Likelihood

Latents = list[Tensor]


class Terms(NamedTuple):
    """The named terms of the negative ELBO of each image, in nats."""

    reconstruction: Tensor  # (B,), -log p(x|z)
    kl: Tensor  # (B, L), one column per rung, bottom first


@dataclass(frozen=True)
class Inference:
    """One pass of the inference network. Lists run over the rungs, bottom first."""

    posteriors: list[DiagonalGaussian]  # q(z_l | x, the rungs that l depends on)
    latents: Latents  # samples, (B, D_l) each
    kl_dims: Latents  # nats per dimension, (B, D_l) each

    @property
    def kl(self) -> Tensor:
        """Nats per rung, (B, L)."""
        return torch.stack([dims.sum(1) for dims in self.kl_dims], dim=1)


class HierarchicalModel(nn.Module, ABC):
    """A model with L rungs of latents z_0..z_{L-1}; rung 0 is nearest the pixels.

    Randomness always comes in as standard normal noise, one tensor (B, D_l) per rung, so that
    the caller decides what is resampled and what stays fixed.
    """

    def __init__(self, config: VlaeConfig | HvaeConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dims = config.latent_dims
        self.likelihood = Likelihood(config.likelihood, image_shape[0], config.scale)

    @abstractmethod
    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Posterior of each rung, a sample of it, and its KL. images: (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def prior(self, noise: Latents) -> Latents:
        """Ancestral sample of all rungs from independent noise."""

    @abstractmethod
    def decode(self, latents: Latents) -> Tensor:
        """Decoder output (B, C, H, W), before the likelihood's link."""

    def forward(self, images: Tensor, noise: Latents) -> Terms:
        """The terms of one image batch, each with one sample of the posterior."""
        inference = self.infer(images, noise)
        return Terms(self.likelihood.nll(self.decode(inference.latents), images), inference.kl)

    def mean_image(self, latents: Latents) -> Tensor:
        """Mean of p(x|z), (B, C, H, W) in [0, 1]."""
        return self.likelihood.mean(self.decode(latents))

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        """Standard normal noise for `count` images, on the generator's device."""
        return [torch.randn(count, dim, generator=generator, device=generator.device) for dim in self.latent_dims]

    def means(self, images: Tensor) -> Latents:
        """Posterior means, each rung given the means of those it depends on."""
        zeros = [torch.zeros(len(images), dim, device=images.device) for dim in self.latent_dims]
        return [posterior.mean for posterior in self.infer(images, zeros).posteriors]
