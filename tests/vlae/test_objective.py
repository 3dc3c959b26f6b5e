"""The loss and its regularizers against hand-made sums, numpy and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vlae.config import ObjectiveConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import ElboTerms
from vlae.objective import mmd, objective_loss, total_correlation


def make_terms(kl: list[list[float]]) -> ElboTerms:
    count = len(kl)
    posteriors = [DiagonalGaussian(torch.zeros(count, 2), torch.zeros(count, 2)) for _ in kl[0]]
    return ElboTerms(torch.full((count,), 10.0), torch.tensor(kl), posteriors, [p.mean for p in posteriors])


def test_objective_loss_weights_are_per_rung() -> None:
    batch = make_terms([[1.0, 0.1], [3.0, 0.3]])  # means 2.0 and 0.2
    assert objective_loss(batch, [1, 1], ObjectiveConfig()).item() == pytest.approx(12.2)
    assert objective_loss(batch, [0.5, 4], ObjectiveConfig()).item() == pytest.approx(10 + 1 + 0.8)
    assert objective_loss(batch, [1, 1], ObjectiveConfig(free_bits=0.5)).item() == pytest.approx(10 + 2 + 0.5)
    assert objective_loss(batch, [1, 2], ObjectiveConfig(free_bits=(3, 0))).item() == pytest.approx(10 + 3 + 0.4)


def test_free_bits_stop_the_gradient_below_them() -> None:
    batch = make_terms([[1.0, 0.1], [3.0, 0.3]])
    batch = batch._replace(kl=batch.kl.requires_grad_())
    objective_loss(batch, [1, 1], ObjectiveConfig(free_bits=0.5)).backward()
    torch.testing.assert_close(batch.kl.grad, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))


def test_total_correlation_of_a_gaussian_aggregate() -> None:
    """For means that are jointly Gaussian with correlation r: TC = -1/2 log(1 - r'^2) of the convolved covariance."""
    generator = torch.Generator().manual_seed(0)
    count, sigma, covariance = 3000, 0.5, torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    mean = torch.randn(count, 2, generator=generator) @ torch.linalg.cholesky(covariance).T
    posterior = DiagonalGaussian(mean, torch.full_like(mean, math.log(sigma)))
    latents = posterior.sample(torch.randn(count, 2, generator=generator))
    aggregate = covariance + sigma**2 * torch.eye(2)
    exact = kl_divergence(
        MultivariateNormal(torch.zeros(2), aggregate),
        MultivariateNormal(torch.zeros(2), torch.diag(aggregate.diag())),
    )
    assert total_correlation(posterior, latents).item() == pytest.approx(exact.item(), rel=0.05)


def test_total_correlation_of_independent_latents_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3000, 2, generator=generator)
    posterior = DiagonalGaussian(mean, torch.full_like(mean, math.log(0.5)))
    latents = posterior.sample(torch.randn(3000, 2, generator=generator))
    assert abs(total_correlation(posterior, latents).item()) < 0.03


def test_total_correlation_equals_the_explicit_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_sigma, latents = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    density = np.array(
        [[Normal(mean[j], log_sigma[j].exp()).log_prob(latents[i]).exp().numpy() for j in range(5)] for i in range(5)]
    )
    joint = np.log(density.prod(2).mean(1))
    marginals = np.log(density.mean(1)).sum(1)
    estimate = total_correlation(DiagonalGaussian(mean, log_sigma), latents)
    assert estimate.item() == pytest.approx((joint - marginals).mean())


def test_mmd_equals_the_explicit_sum_and_the_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(6, 3, generator=generator), torch.randn(4, 3, generator=generator) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-np.mean((x - y) ** 2) / 3) for y in b] for x in a]))

    a, b = first.numpy(), second.numpy()
    assert mmd(first, second).item() == pytest.approx(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b), rel=1e-5)
    assert mmd(first, first).item() == pytest.approx(0, abs=1e-6)
    # In one dimension E k(x, y) = 1 / sqrt(1 + 2 v) exp(-m^2 / (1 + 2 v)) for x - y ~ N(m, v).
    near, far = torch.randn(3000, 1, generator=generator), torch.randn(3000, 1, generator=generator) + 1
    within, between = 1 / math.sqrt(5), math.exp(-1 / 5) / math.sqrt(5)
    assert mmd(near, far).item() == pytest.approx(2 * within - 2 * between, rel=0.1)


def test_objective_loss_adds_weighted_regularizers() -> None:
    batch = make_terms([[1.0, 0.1], [3.0, 0.3], [0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    prior = [torch.randn(3, 2, generator=generator) for _ in range(2)]
    latents = [torch.randn(3, 2, generator=generator) for _ in range(2)]
    batch = batch._replace(latents=latents)
    plain = objective_loss(batch, [1, 1], ObjectiveConfig())
    correlation = total_correlation(DiagonalGaussian(torch.zeros(3, 4), torch.zeros(3, 4)), torch.cat(latents, 1))
    with_tc = objective_loss(batch, [1, 1], ObjectiveConfig(total_correlation=5))
    torch.testing.assert_close(with_tc, plain + 5 * correlation)
    low, high = (mmd(z, p) for z, p in zip(latents, prior, strict=True))
    for weights in ((3, 3), (3, 0.5), (0, 2)):
        with_mmd = objective_loss(batch, [1, 1], ObjectiveConfig(), prior, weights)
        torch.testing.assert_close(with_mmd, plain + weights[0] * low + weights[1] * high)
