"""Diagonal Gaussians against torch.distributions."""

import torch
from torch.distributions import Independent, Normal, kl_divergence

from vlae.gaussian import DiagonalGaussian


def test_agrees_with_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_sigma, value = (torch.randn(7, 5, generator=generator) for _ in range(3))
    ours = DiagonalGaussian(mean, log_sigma)
    theirs = Normal(mean, log_sigma.exp())
    standard = Normal(torch.zeros(7, 5), torch.ones(7, 5))
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.kl_to_standard(), kl_divergence(theirs, standard))
    torch.testing.assert_close(ours.log_prob(value).sum(-1), Independent(theirs, 1).log_prob(value))


def test_samples_have_the_stated_moments() -> None:
    ours = DiagonalGaussian(torch.tensor([2.0, -1.0]), torch.tensor([0.5, -2.0]))
    drawn = ours.sample(torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.mean(0), ours.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), ours.log_sigma.exp(), atol=0.02, rtol=0)


def test_runaway_head_stays_finite_and_keeps_a_gradient() -> None:
    raw = torch.tensor([[0.0, 1e4], [0.0, 20.0]], requires_grad=True)
    kl = DiagonalGaussian.from_parameters(raw).kl_to_standard()
    assert torch.isfinite(kl).all()
    kl.sum().backward()
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[1, 1] > 0
