"""Diagonal Gaussians against torch.distributions."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from vlae.gaussian import DiagonalGaussian


def test_log_prob_and_kl_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_sigma, value = (torch.randn(7, 5, generator=generator) for _ in range(3))
    ours = DiagonalGaussian(mean, log_sigma)
    theirs = Normal(mean, log_sigma.exp())
    standard = Normal(torch.zeros(7, 5), torch.ones(7, 5))
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.kl_to_standard(), kl_divergence(theirs, standard))
    torch.testing.assert_close(ours.log_prob(value).sum(-1), Independent(theirs, 1).log_prob(value))


def test_samples_have_the_moments_of_the_gaussian() -> None:
    ours = DiagonalGaussian(torch.tensor([2.0, -1.0]), torch.tensor([0.5, -2.0]))
    drawn = ours.sample(torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.mean(0), ours.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), ours.log_sigma.exp(), atol=0.02, rtol=0)


def test_extreme_parameters_keep_a_finite_gradient() -> None:
    raw = torch.tensor([[0.0, 1e4], [0.0, 20.0]], requires_grad=True)
    kl = DiagonalGaussian.from_parameters(raw).kl_to_standard()
    assert torch.isfinite(kl).all()
    kl.sum().backward()
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[1, 1] > 0


def pair() -> tuple[DiagonalGaussian, DiagonalGaussian, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(5)]
    return DiagonalGaussian(*draws[:2]), DiagonalGaussian(*draws[2:4]), draws[4]


def test_kl_to_agrees_with_torch() -> None:
    ours, other, _ = pair()
    expected = kl_divergence(Normal(ours.mean, ours.log_sigma.exp()), Normal(other.mean, other.log_sigma.exp()))
    torch.testing.assert_close(ours.kl_to(other), expected)
    torch.testing.assert_close(ours.kl_to(ours.standard()), ours.kl_to_standard())


def test_times_is_proportional_to_both_densities() -> None:
    first, second, value = pair()
    product = first.times(second)
    constant = first.log_prob(value) + second.log_prob(value) - product.log_prob(value)
    elsewhere = first.log_prob(value + 1) + second.log_prob(value + 1) - product.log_prob(value + 1)
    torch.testing.assert_close(constant, elsewhere)
    # The product with an almost uniform density is the other factor.
    vague = DiagonalGaussian(second.mean, torch.full_like(second.mean, 30.0))
    torch.testing.assert_close(first.times(vague).mean, first.mean)
    torch.testing.assert_close(first.times(vague).log_sigma, first.log_sigma)


@pytest.mark.parametrize("link", ["exp", "sigmoid", "softplus"])
def test_from_parameters_link_gives_its_sigma(link: str) -> None:
    raw = torch.linspace(-3, 3, 9, dtype=torch.float64)
    gaussian = DiagonalGaussian.from_parameters(torch.cat([raw, raw]), link)
    expected = {
        "exp": torch.exp(5 * torch.tanh(raw / 5)),
        "sigmoid": torch.sigmoid(raw) + 0.001,
        "softplus": torch.sqrt(F.softplus(raw)),
    }[link]
    torch.testing.assert_close(gaussian.mean, raw)
    torch.testing.assert_close(gaussian.log_sigma.exp(), expected, rtol=1e-4, atol=0)
    extreme = DiagonalGaussian.from_parameters(torch.tensor([0.0, 0.0, -1e4, 1e4]), link).log_sigma
    assert torch.isfinite(extreme).all()
