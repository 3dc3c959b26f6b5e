"""The generalized normal prior against SciPy, quadrature and the normal."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

from vlae.gaussian import DiagonalGaussian
from vlae.prior import GeneralizedNormal

POWERS = [2, 4, 8]


def posterior() -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(2)
    mean, log_sigma = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return DiagonalGaussian(mean, 0.5 * log_sigma - 0.5)


@pytest.mark.parametrize("power", POWERS)
def test_log_prob_agrees_with_scipy(power: int) -> None:
    prior = GeneralizedNormal(power)
    value = torch.linspace(-2.5, 2.5, 31, dtype=torch.float64)
    theirs = stats.gennorm(power, scale=prior.scale)
    np.testing.assert_allclose(prior.log_prob(value).numpy(), theirs.logpdf(value.numpy()), rtol=1e-12)
    assert theirs.var() == pytest.approx(1, rel=1e-12)


def test_power_2_is_the_standard_normal() -> None:
    prior, q = GeneralizedNormal(2), posterior()
    standard = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    torch.testing.assert_close(prior.kl_from(q), kl_divergence(Normal(q.mean, q.log_sigma.exp()), standard))
    torch.testing.assert_close(prior.log_prob(q.mean), standard.log_prob(q.mean))
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.sample(noise), noise)
    assert torch.equal(prior.noise(noise), noise)


@pytest.mark.parametrize("power", POWERS)
def test_kl_from_agrees_with_quadrature(power: int) -> None:
    prior, q = GeneralizedNormal(power), posterior()
    p = stats.gennorm(power, scale=prior.scale)
    for mean, log_sigma, kl in zip(*(values.flatten().tolist() for values in (*q, prior.kl_from(q))), strict=True):
        normal = stats.norm(mean, np.exp(log_sigma))
        low, high = mean - 9 * normal.std(), mean + 9 * normal.std()
        expected, _ = integrate.quad(lambda z: normal.pdf(z) * (normal.logpdf(z) - p.logpdf(z)), low, high, epsabs=1e-9)  # noqa: B023
        assert kl == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("power", POWERS)
def test_collapsed_kl_is_the_minimum_over_gaussians(power: int) -> None:
    prior = GeneralizedNormal(power)
    log_sigma = torch.linspace(-2, 1, 30001, dtype=torch.float64)
    costs = prior.kl_from(DiagonalGaussian(torch.zeros_like(log_sigma), log_sigma))
    assert prior.collapsed_kl == pytest.approx(costs.min().item(), abs=1e-7)
    moved = prior.kl_from(DiagonalGaussian(torch.full_like(log_sigma, 0.1), log_sigma))
    assert moved.min() > prior.collapsed_kl


@pytest.mark.parametrize("power", [4, 8])
def test_sample_is_a_quantile_and_noise_inverts_it(power: int) -> None:
    prior = GeneralizedNormal(power)
    noise = torch.linspace(-6, 6, 25, dtype=torch.float64).view(5, 5)
    drawn = prior.sample(noise)
    expected = stats.gennorm.ppf(stats.norm.cdf(noise.numpy()[:3]), power, scale=prior.scale)
    np.testing.assert_allclose(drawn.numpy()[:3], expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(drawn, -drawn.flip(0, 1))
    torch.testing.assert_close(prior.noise(drawn), noise, rtol=1e-6, atol=1e-12)
    single = prior.sample(noise.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, drawn.float())


def test_noise_of_extreme_values_is_finite() -> None:
    prior = GeneralizedNormal(8)
    far = prior.noise(torch.tensor([100.0, -100.0, 0.0]))
    assert torch.isfinite(far).all()
    assert far[0] == -far[1] > 30
    assert far[2] == 0
    assert torch.isfinite(prior.sample(torch.tensor([100.0]))).all()


def test_kl_of_uniform_sources_is_least_along_the_axes() -> None:
    """Powers above 2 prefer the axes to a rotation of independent sources; N(0, I) does not."""
    sources = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    rotation = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5

    def cost(power: int, codes: torch.Tensor) -> float:
        """Return the KL at the best scale of codes and noise."""
        scales = (
            DiagonalGaussian(s * codes, torch.full_like(codes, math.log(0.1 * s))) for s in np.linspace(1, 2.5, 31)
        )
        return min(GeneralizedNormal(power).kl_from(q).mean().item() for q in scales)

    gaps = {power: cost(power, sources @ rotation) - cost(power, sources) for power in POWERS}
    assert gaps[2] == pytest.approx(0, abs=0.002)
    assert gaps[8] > gaps[4] > 0.05


@pytest.mark.parametrize("power", [0, 3, -2])
def test_invalid_power_raises(power: int) -> None:
    with pytest.raises(ValueError, match="power"):
        GeneralizedNormal(power)
