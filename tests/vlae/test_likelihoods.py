"""Likelihoods against closed forms and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from vlae.likelihoods import Likelihood

LEVELS = torch.arange(256) / 255


def nll_by_level(kind: str, output: float, scale: float) -> torch.Tensor:
    """-log p of each of the 256 grey levels for one pixel."""
    likelihood = Likelihood(kind, 1, scale)
    with torch.no_grad():
        return likelihood.nll(torch.full((256, 1, 1, 1), output), LEVELS.view(256, 1, 1, 1))


@pytest.mark.parametrize("output", [-9.0, -2.0, 0.3, 6.0])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.003])
def test_logistic_is_a_distribution_over_the_grey_levels(output: float, scale: float) -> None:
    assert torch.exp(-nll_by_level("logistic", output, scale)).sum().item() == pytest.approx(1, abs=2e-5)


def test_logistic_agrees_with_the_difference_of_its_cdf() -> None:
    location, scale = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64)), 0.07
    edges = (torch.arange(1, 256, dtype=torch.float64) - 0.5) / 255
    cdf = torch.cat([torch.zeros(1), torch.sigmoid((edges - location) / scale), torch.ones(1)])
    torch.testing.assert_close(
        nll_by_level("logistic", 0.4, scale).double(), -torch.log(cdf.diff()), rtol=1e-4, atol=1e-4
    )


def test_logistic_far_in_the_tail_is_exact() -> None:
    # At 250 scales from the location a difference of two sigmoids is 0 in float32.
    nll = nll_by_level("logistic", -12.0, 0.004)
    location = 1 / (1 + math.exp(12.0))
    expected = (254 / 255 - location - 0.5 / 255) / 0.004 - math.log(1 - math.exp(-1 / 255 / 0.004))
    assert nll[254].item() == pytest.approx(expected, rel=1e-3)


def test_gaussian_is_the_density_per_grey_level() -> None:
    expected = -Normal(torch.sigmoid(torch.tensor(0.4)), 0.1).log_prob(LEVELS) + math.log(255)
    torch.testing.assert_close(nll_by_level("gaussian", 0.4, 0.1), expected)
    # A bin is narrow against this sigma, so density per level and probability of the level agree.
    assert torch.exp(-nll_by_level("gaussian", 0.0, 0.05)).sum().item() == pytest.approx(1, abs=1e-3)


def test_bernoulli_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    output, images = torch.randn(4, 3, 5, 5, generator=generator), torch.rand(4, 3, 5, 5, generator=generator).round()
    expected = -Bernoulli(logits=output).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(Likelihood("bernoulli", 3, None).nll(output, images), expected)


@pytest.mark.parametrize("kind", ["logistic", "gaussian"])
def test_learned_scale_finds_the_noise(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (0.5 + 0.08 * torch.randn(1, 1, 64, 64, generator=generator)).clamp(0, 1).mul(255).round() / 255
    likelihood = Likelihood(kind, 1, None)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(torch.zeros(1, 1, 64, 64), images).mean().backward()
        optimizer.step()
    # A logistic of scale s has the standard deviation s pi / sqrt(3).
    deviation = likelihood.log_scale.exp().item() * (math.pi / math.sqrt(3) if kind == "logistic" else 1)
    assert deviation == pytest.approx(0.08, rel=0.08)
