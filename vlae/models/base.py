"""What every model offers, whatever its latent structure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlae.config import BaseModelConfig
from vlae.gaussian import DiagonalGaussian
from vlae.likelihoods import Likelihood
from vlae.prior import GeneralizedNormal

Latents = list[Tensor]
FixedLatents = Sequence[Tensor | None]  # per rung, bottom first


def eval_batch_size(device: torch.device) -> int:
    """Images in a batch where nothing is learnt: few enough for a CPU's caches, enough to keep a GPU busy."""
    return 64 if device.type == "cpu" else 256


class ElboTerms(NamedTuple):
    """What the objective is made of. Nats; lists run over the rungs, bottom first."""

    reconstruction: Tensor  # (B,), -log p(x|z)
    kl: Tensor  # (B, L), one column per rung
    posteriors: list[DiagonalGaussian]  # (B, D_l) each
    latents: Latents  # samples of them


@dataclass(frozen=True)
class Inference:
    """One pass of the inference network. Lists run over the rungs, bottom first."""

    posteriors: list[DiagonalGaussian]  # q(z_l | x, the rungs that l depends on)
    priors: Sequence[DiagonalGaussian | GeneralizedNormal]  # p(z_l | the rungs above it), at the samples
    latents: Latents  # samples of the posteriors, (B, D_l) each
    kl_dims: Latents  # nats per dimension, (B, D_l) each; exact where they can be

    def resample(self, noise: Latents) -> "Inference":
        """Other samples of the same posteriors; only where none depends on a sample."""
        latents = [q.sample(e) for q, e in zip(self.posteriors, noise, strict=True)]
        return replace(self, latents=latents)

    @property
    def kl(self) -> Tensor:
        """Nats per rung, (B, L)."""
        return torch.stack([dims.sum(1) for dims in self.kl_dims], dim=1)

    @property
    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z) at the samples, nats, (B,): what importance weights are made of."""
        parts = zip(self.posteriors, self.priors, self.latents, strict=True)
        return torch.stack([(q.log_prob(z) - p.log_prob(z)).sum(1) for q, p, z in parts]).sum(0)


class HierarchicalModel(nn.Module, ABC):
    """A model with L rungs of latents z_0..z_{L-1}; rung 0 is nearest the pixels.

    Randomness always comes in as standard normal noise, one tensor (B, D_l) per rung, so that
    the caller decides what is resampled and what stays fixed.
    """

    def __init__(self, config: BaseModelConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dims = config.latent_dims
        self.likelihood = Likelihood(config.likelihood, image_shape[0], config.likelihood_scale)

    @abstractmethod
    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Posterior of each rung, a sample of it, and its KL. images: (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def prior(self, noise: Latents, given: FixedLatents | None = None) -> Latents:
        """Ancestral sample of all rungs from independent noise.

        Args:
            noise: (B, D_l) per rung.
            given: rungs that are not drawn but taken as they are; those that depend on them are drawn given them.
        """

    @abstractmethod
    def decode(self, latents: Latents) -> Tensor:
        """Decoder output (B, C, H, W), before the likelihood's link."""

    def forward(self, images: Tensor, noise: Latents) -> ElboTerms:
        """The terms of one image batch, each with one sample of the posterior."""
        drawn = self.infer(images, noise)
        reconstruction = self.likelihood.nll(self.decode(drawn.latents), images)
        return ElboTerms(reconstruction, drawn.kl, drawn.posteriors, drawn.latents)

    def mean_image(self, latents: Latents) -> Tensor:
        """Mean of p(x|z), (B, C, H, W) in [0, 1]; the median of a Laplace."""
        return self.likelihood.mean(self.decode(latents))

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        """Standard normal noise for `count` images, on the generator's device."""
        return [torch.randn(count, dim, generator=generator, device=generator.device) for dim in self.latent_dims]

    @property
    def num_parameters(self) -> int:
        """How many parameters are trained."""
        return sum(part.numel() for part in self.parameters() if part.requires_grad)

    @property
    def collapsed_kl(self) -> float:
        """KL of a latent that tells nothing, nats: above 0 where the prior is not of the posterior's kind."""
        return 0.0

    @property
    def independent_posteriors(self) -> bool:
        """Whether no posterior depends on what was drawn in another rung: the means of `infer` are then `means`."""
        return len(self.latent_dims) == 1

    def infer_means(self, images: Tensor) -> Inference:
        """`infer` without noise: each sample is its posterior's mean, given the means of the rungs it depends on."""
        return self.infer(images, [torch.zeros(len(images), dim, device=images.device) for dim in self.latent_dims])

    def means(self, images: Tensor) -> Latents:
        """Posterior means, each rung given the means of those it depends on."""
        return [posterior.mean for posterior in self.infer_means(images).posteriors]
