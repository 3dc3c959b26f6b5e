"""Diagonal Gaussians, the only distribution over latents that the models use."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_sigma))^2); both tensors (..., D), float32."""

    mean: Tensor
    log_sigma: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> "DiagonalGaussian":
        """Split a head's output (..., 2 D) into mean and log sigma.

        log sigma is softly clamped to (-5, 5): a runaway head can then neither overflow
        nor reach a zero variance, and the gradient never dies.
        """
        mean, raw = parameters.float().chunk(2, dim=-1)
        return cls(mean, 5 * torch.tanh(raw / 5))

    @property
    def dim(self) -> int:
        """Number of latent dimensions D."""
        return self.mean.shape[-1]

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised sample (..., D) from standard normal `noise` of that shape."""
        return self.mean + self.log_sigma.exp() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each dimension, in nats: (..., D)."""
        standardised = (value - self.mean) * torch.exp(-self.log_sigma)
        return -(0.5 * standardised.square() + self.log_sigma + 0.5 * math.log(2 * math.pi))

    def kl_to_standard(self) -> Tensor:
        """KL(self || N(0, I)) per dimension, in nats: (..., D), each >= 0."""
        return 0.5 * (self.mean.square() + torch.exp(2 * self.log_sigma) - 1) - self.log_sigma
