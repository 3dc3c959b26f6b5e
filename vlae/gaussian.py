"""Diagonal Gaussians: all posteriors, and all priors except those of `vlae.prior`.

References:
    Sønderby et al.: "Ladder Variational Autoencoders", NIPS 2016, arXiv:1602.02282.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SigmaLink = Literal["exp", "sigmoid", "softplus"]
_MIN_VARIANCE = 1e-6  # sigma >= 1e-3


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_sigma))^2) over the last dimension.

    Attributes:
        mean: (..., D) float32.
        log_sigma: (..., D) float32, natural logarithm of the standard deviation.

    Example:
        >>> q = DiagonalGaussian(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        >>> q.kl_to_standard()
        tensor([[0.5000, 0.0000]])
    """

    mean: Tensor
    log_sigma: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor, link: SigmaLink = "exp") -> "DiagonalGaussian":
        """Return the Gaussian over (..., D) whose mean and scale are the two halves of a head's output.

        Args:
            parameters: (..., 2 D) of any float dtype; the result is float32, or float64 from float64.
            link: Function from the raw second half to sigma. `exp`: log sigma = 5 tanh(raw / 5), a soft clamp to
                (-5, 5) that neither overflows nor reaches zero variance, and has a gradient everywhere. `sigmoid`:
                sigma = sigmoid(raw) + 0.001, as in the released code of the VLAE. `softplus`:
                sigma^2 = softplus(raw) + 1e-6, as in the LVAE.
        """
        wide = parameters if parameters.dtype == torch.float64 else parameters.float()
        mean, raw = wide.chunk(2, dim=-1)
        if link == "sigmoid":
            return cls(mean, torch.log(torch.sigmoid(raw) + 0.001))
        if link == "softplus":
            return cls(mean, 0.5 * torch.log(F.softplus(raw) + _MIN_VARIANCE))
        return cls(mean, 5 * torch.tanh(raw / 5))

    def standard(self) -> "DiagonalGaussian":
        """Return N(0, I) of the same shape."""
        return DiagonalGaussian(torch.zeros_like(self.mean), torch.zeros_like(self.mean))

    def sample(self, noise: Tensor) -> Tensor:
        """Return the reparametrized sample mean + sigma * noise, (..., D), of standard normal noise (..., D)."""
        return self.mean + self.log_sigma.exp() * noise

    def noise(self, value: Tensor) -> Tensor:
        """Return the noise (..., D) from which `sample` makes a value (..., D): (value - mean) / sigma."""
        return (value - self.mean) * torch.exp(-self.log_sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each dimension of a value (..., D) in nats, (..., D)."""
        return -(0.5 * self.noise(value).square() + self.log_sigma + 0.5 * math.log(2 * math.pi))

    def kl_to_standard(self) -> Tensor:
        """Return KL(self || N(0, I)) of each dimension in nats, (..., D), each >= 0."""
        return 0.5 * (self.mean.square() + torch.exp(2 * self.log_sigma) - 1) - self.log_sigma

    def kl_to(self, other: "DiagonalGaussian") -> Tensor:
        """Return KL(self || other) of each dimension in nats, (..., D), each >= 0."""
        ratio = 2 * (self.log_sigma - other.log_sigma)
        distance = (self.mean - other.mean).square() * torch.exp(-2 * other.log_sigma)
        return 0.5 * (distance + torch.exp(ratio) - 1 - ratio)

    def times(self, other: "DiagonalGaussian") -> "DiagonalGaussian":
        """Return the normalized product of the two densities (Sønderby et al. 2016, eqs. 17-19).

        Precisions add up, 1 / sigma^2 = 1 / sigma_1^2 + 1 / sigma_2^2, and means are averaged with them as weights.
        """
        log_precision = torch.logaddexp(-2 * self.log_sigma, -2 * other.log_sigma)
        weight = torch.exp(-2 * self.log_sigma - log_precision)
        return DiagonalGaussian(weight * self.mean + (1 - weight) * other.mean, -0.5 * log_precision)
