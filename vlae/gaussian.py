"""Diagonal Gaussians: all posteriors, and all priors but the flat-topped ones of `vlae.prior`."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SigmaLink = Literal["exp", "sigmoid", "softplus"]
_VARIANCE_FLOOR = 1e-6  # sigma >= 1e-3


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_sigma))^2); both tensors (..., D), float32."""

    mean: Tensor
    log_sigma: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor, link: SigmaLink = "exp") -> "DiagonalGaussian":
        """Split a head's output (..., 2 D) into mean and log sigma.

        Args:
            parameters: any float dtype; the result is float32, or float64 from float64.
            link: `exp`: the raw value is log sigma, softly clamped to (-5, 5), so that a runaway head can
                neither overflow nor reach a zero variance, and the gradient never dies. `sigmoid`: sigma =
                sigmoid(raw) + 0.001, as the reference code of the VLAE has it. `softplus`: variance =
                softplus(raw), as in the LVAE (Soenderby et al. 2016).
        """
        wide = parameters if parameters.dtype == torch.float64 else parameters.float()
        mean, raw = wide.chunk(2, dim=-1)
        if link == "sigmoid":
            return cls(mean, torch.log(torch.sigmoid(raw) + 0.001))
        if link == "softplus":
            return cls(mean, 0.5 * torch.log(F.softplus(raw) + _VARIANCE_FLOOR))
        return cls(mean, 5 * torch.tanh(raw / 5))

    def standard(self) -> "DiagonalGaussian":
        """N(0, I) of the same shape."""
        return DiagonalGaussian(torch.zeros_like(self.mean), torch.zeros_like(self.mean))

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrized sample (..., D) from standard normal `noise` of that shape."""
        return self.mean + self.log_sigma.exp() * noise

    def noise(self, value: Tensor) -> Tensor:
        """The noise that `sample` makes `value` of, (..., D)."""
        return (value - self.mean) * torch.exp(-self.log_sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each dimension, in nats: (..., D)."""
        return -(0.5 * self.noise(value).square() + self.log_sigma + 0.5 * math.log(2 * math.pi))

    def kl_to_standard(self) -> Tensor:
        """KL(self || N(0, I)) per dimension, in nats: (..., D), each >= 0."""
        return 0.5 * (self.mean.square() + torch.exp(2 * self.log_sigma) - 1) - self.log_sigma

    def kl_to(self, other: "DiagonalGaussian") -> Tensor:
        """KL(self || other) per dimension, in nats: (..., D), each >= 0."""
        ratio = 2 * (self.log_sigma - other.log_sigma)
        distance = (self.mean - other.mean).square() * torch.exp(-2 * other.log_sigma)
        return 0.5 * (distance + torch.exp(ratio) - 1 - ratio)

    def times(self, other: "DiagonalGaussian") -> "DiagonalGaussian":
        """The normalized product of the two densities: precisions add, means are weighted by them.

        This is the precision-weighted merge of the LVAE (Soenderby et al. 2016, eqs. 17-19).
        """
        total = torch.logaddexp(-2 * self.log_sigma, -2 * other.log_sigma)  # log precision
        share = torch.exp(-2 * self.log_sigma - total)
        return DiagonalGaussian(share * self.mean + (1 - share) * other.mean, -0.5 * total)
