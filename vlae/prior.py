"""The prior of latents that depend on no others: independent dimensions of mean 0 and variance 1."""

import math

import torch
from scipy.special import erfc, erfcinv, gammaincc, gammainccinv
from torch import Tensor

from vlae.gaussian import DiagonalGaussian

_NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of N(0, 1), nats
_MIN_TAIL = 1e-300  # probability of a tail at 37 standard deviations; keeps `noise` finite


class GeneralizedNormal:
    """Generalized normal distribution, p(z) ~ exp(-|z / scale|^power) in each dimension, scaled to variance 1.

    Power 2 is N(0, 1), under which all rotations of a rung are equally good. Higher powers approach a uniform density
    and single out the axes, because independent sources of which at most one is Gaussian are identifiable up to
    permutation and scale (ICA). Even powers have an exact KL. SciPy calls the power the shape `beta` of `gennorm`.

    Args:
        power: Exponent p, even and at least 2.

    Attributes:
        scale: sqrt(Gamma(1/p) / Gamma(3/p)), which gives variance 1.

    Raises:
        ValueError: The power is odd or smaller than 2.

    References:
        Subbotin: "On the Law of Frequency of Error", Matematicheskii Sbornik 1923.
        Comon: "Independent Component Analysis, A New Concept?", Signal Processing 1994.
        Stühmer, Turner, Nowozin: "Independent Subspace Analysis for Unsupervised Learning of Disentangled
        Representations", AISTATS 2020, arXiv:1909.05063.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> GeneralizedNormal(2).kl_from(q)
        tensor([[0., 0.]])
    """

    def __init__(self, power: int) -> None:
        if power < 2 or power % 2:
            raise ValueError(f"power: invalid value {power}. Pass an even number of at least 2.")
        self.power = power
        self.scale = math.sqrt(math.gamma(1 / power) / math.gamma(3 / power))
        self._log_norm = math.log(2 * self.scale * math.gamma(1 + 1 / power))

    @property
    def collapsed_kl(self) -> float:
        """KL of a collapsed latent: of the Gaussian nearest to this prior, nats, >= 0."""
        moment = math.prod(range(1, self.power, 2))  # E z^power of N(0, 1)
        log_sigma = math.log(self.scale) - math.log(self.power * moment) / self.power
        return 1 / self.power - log_sigma + self._log_norm - _NORMAL_ENTROPY

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each dimension of a value (..., D) in nats, (..., D)."""
        return -(value / self.scale).pow(self.power) - self._log_norm

    def kl_from(self, posterior: DiagonalGaussian) -> Tensor:
        """Return KL(posterior || self) of each dimension in nats, (..., D), each >= 0 up to rounding.

        The KL is exact: E z^power is a moment of the posterior, m_n = mean m_(n-1) + (n - 1) sigma^2 m_(n-2).
        """
        if self.power == 2:
            return posterior.kl_to_standard()
        mean = posterior.mean / self.scale
        variance = torch.exp(2 * (posterior.log_sigma - math.log(self.scale)))
        previous, moment = torch.ones_like(mean), mean
        for order in range(2, self.power + 1):
            previous, moment = moment, mean * moment + (order - 1) * variance * previous
        return moment - posterior.log_sigma + (self._log_norm - _NORMAL_ENTROPY)

    def sample(self, noise: Tensor) -> Tensor:
        """Return the sample (..., D) that is the same quantile of this prior as the noise (..., D) is of N(0, 1).

        For powers above 2 SciPy computes the sample on the CPU, without a gradient. Dtype and device are the noise's.
        """
        if self.power == 2:
            return noise
        tail = erfc(abs(noise.detach().double().cpu().numpy()) / math.sqrt(2)).clip(_MIN_TAIL)
        size = self.scale * gammainccinv(1 / self.power, tail) ** (1 / self.power)
        return torch.copysign(torch.from_numpy(size).to(noise), noise)

    def noise(self, value: Tensor) -> Tensor:
        """Return the noise (..., D) from which `sample` makes a value (..., D), up to 37 standard deviations.

        At power 8 that limit is a value of 4; values beyond it are not recovered by `sample`. For powers above 2 SciPy
        computes the noise on the CPU, without a gradient. Dtype and device are those of the value.
        """
        if self.power == 2:
            return value
        size = abs(value.detach().double().cpu().numpy()) / self.scale
        tail = gammaincc(1 / self.power, size**self.power).clip(_MIN_TAIL)
        return torch.copysign(torch.from_numpy(math.sqrt(2) * erfcinv(tail)).to(value), value)
