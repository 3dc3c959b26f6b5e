"""The prior of latents that depend on no others: independent dimensions of mean 0 and variance 1."""

import math

import torch
from scipy.special import erfc, erfcinv, gammaincc, gammainccinv
from torch import Tensor

from vlae.gaussian import DiagonalGaussian

_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of N(0, 1), nats
_SMALLEST = 1e-300  # of a tail that noise can still stand for: 37 standard deviations


class GeneralizedNormal:
    """Density proportional to exp(-|z / scale|^power) in each dimension (Subbotin 1923).

    Power 2 is N(0, 1), under which all rotations of a rung are equally good. Higher powers come nearer to a uniform
    density and single out the axes: independent sources, no two of them Gaussian, can be told from their rotations
    (Comon 1994), which Stuehmer et al. (2020, "Independent Subspace Analysis for Unsupervised Learning of
    Disentangled Representations") use for VAEs with densities of this kind. Even powers have an exact KL.

    Args:
        power: even, 2 or more.

    Raises:
        ValueError: another power.
    """

    def __init__(self, power: int) -> None:
        if power < 2 or power % 2:
            raise ValueError(f"the power of a prior is even and 2 or more, not {power}")
        self.power = power
        self.scale = math.sqrt(math.gamma(1 / power) / math.gamma(3 / power))  # of variance 1
        self._log_norm = math.log(2 * self.scale * math.gamma(1 + 1 / power))

    @property
    def collapsed_kl(self) -> float:
        """KL of the nearest Gaussian, nats per dimension, >= 0: what a posterior costs that tells nothing."""
        moment = math.prod(range(1, self.power, 2))  # E z^power of N(0, 1)
        log_sigma = math.log(self.scale) - math.log(self.power * moment) / self.power
        return 1 / self.power - log_sigma + self._log_norm - _ENTROPY

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each dimension, in nats: (..., D)."""
        return -(value / self.scale).pow(self.power) - self._log_norm

    def kl_from(self, posterior: DiagonalGaussian) -> Tensor:
        """KL(posterior || self) per dimension, in nats: (..., D), each >= 0 but for rounding.

        Exact: E z^power is the posterior's moment, by the recursion m_n = mean m_(n-1) + (n - 1) sigma^2 m_(n-2).
        """
        if self.power == 2:
            return posterior.kl_to_standard()
        mean = posterior.mean / self.scale
        variance = torch.exp(2 * (posterior.log_sigma - math.log(self.scale)))
        before, moment = torch.ones_like(mean), mean
        for order in range(2, self.power + 1):
            before, moment = moment, mean * moment + (order - 1) * variance * before
        return moment - posterior.log_sigma + (self._log_norm - _ENTROPY)

    def sample(self, noise: Tensor) -> Tensor:
        """Sample (..., D) from standard normal `noise` of that shape: the same quantile.

        Without a gradient, and by way of the CPU, for powers above 2.
        """
        if self.power == 2:
            return noise
        size = noise.detach().double().cpu().numpy()
        tail = erfc(abs(size) / math.sqrt(2)).clip(_SMALLEST)
        found = self.scale * gammainccinv(1 / self.power, tail) ** (1 / self.power)
        return torch.copysign(torch.from_numpy(found).to(noise), noise)

    def noise(self, value: Tensor) -> Tensor:
        """The noise that `sample` makes `value` of, (..., D); for powers above 2 as `sample`, and at most 37 in size.

        That much is a value of 4 at power 8: what lies beyond it, `sample` does not give back.
        """
        if self.power == 2:
            return value
        size = abs(value.detach().double().cpu().numpy()) / self.scale
        tail = gammaincc(1 / self.power, size**self.power).clip(_SMALLEST)
        return torch.copysign(torch.from_numpy(math.sqrt(2) * erfcinv(tail)).to(value), value)
