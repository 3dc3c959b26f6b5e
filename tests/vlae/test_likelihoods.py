"""Likelihoods against closed forms and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Laplace, Normal

from vlae.likelihoods import Likelihood

LEVELS = torch.arange(256) / 255


def nll_by_level(kind: str, output: float, scale: float) -> torch.Tensor:
    """Return -log p of each of the 256 gray levels for one pixel."""
    likelihood = Likelihood(kind, 1, scale)
    with torch.no_grad():
        return likelihood.nll(torch.full((256, 1, 1, 1), output), LEVELS.view(256, 1, 1, 1))


@pytest.mark.parametrize("output", [-9.0, -2.0, 0.3, 6.0])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.003])
def test_logistic_probabilities_sum_to_one(output: float, scale: float) -> None:
    assert torch.exp(-nll_by_level("logistic", output, scale)).sum().item() == pytest.approx(1, abs=2e-5)


def test_logistic_equals_the_difference_of_its_cdf() -> None:
    location, scale = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64)), 0.07
    edges = (torch.arange(1, 256, dtype=torch.float64) - 0.5) / 255
    cdf = torch.cat([torch.zeros(1), torch.sigmoid((edges - location) / scale), torch.ones(1)])
    torch.testing.assert_close(
        nll_by_level("logistic", 0.4, scale).double(), -torch.log(cdf.diff()), rtol=1e-4, atol=1e-4
    )


def test_logistic_far_in_the_tail_is_exact() -> None:
    """At 250 scales from the location, a difference of two sigmoids would be 0 in float32."""
    nll = nll_by_level("logistic", -12.0, 0.004)
    location = 1 / (1 + math.exp(12.0))
    expected = (254 / 255 - location - 0.5 / 255) / 0.004 - math.log(1 - math.exp(-1 / 255 / 0.004))
    assert nll[254].item() == pytest.approx(expected, rel=1e-3)


def test_gaussian_is_a_density_per_gray_level() -> None:
    expected = -Normal(torch.sigmoid(torch.tensor(0.4)), 0.1).log_prob(LEVELS) + math.log(255)
    torch.testing.assert_close(nll_by_level("gaussian", 0.4, 0.1), expected)
    # Density per level and probability of the level agree, because a bin is narrow against this sigma.
    assert torch.exp(-nll_by_level("gaussian", 0.0, 0.05)).sum().item() == pytest.approx(1, abs=1e-3)


def test_bernoulli_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    output, images = torch.randn(4, 3, 5, 5, generator=generator), torch.rand(4, 3, 5, 5, generator=generator).round()
    expected = -Bernoulli(logits=output).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(Likelihood("bernoulli", 3, "learned").nll(output, images), expected)


def test_laplace_is_a_density_per_gray_level() -> None:
    expected = -Laplace(torch.sigmoid(torch.tensor(0.4)), 0.125).log_prob(LEVELS) + math.log(255)
    torch.testing.assert_close(nll_by_level("laplace", 0.4, 0.125), expected)


def noisy_gray(deviation: float) -> torch.Tensor:
    """Return one image of noise around 0.5, in gray levels."""
    generator = torch.Generator().manual_seed(0)
    return (0.5 + deviation * torch.randn(1, 1, 64, 64, generator=generator)).clamp(0, 1).mul(255).round() / 255


# unit: standard deviation of Gaussian noise to which a scale of 1 is the best fit.
@pytest.mark.parametrize(
    ("kind", "unit"), [("logistic", math.pi / math.sqrt(3)), ("gaussian", 1), ("laplace", math.sqrt(math.pi / 2))]
)
def test_learned_scale_converges_to_the_noise(kind: str, unit: float) -> None:
    images, likelihood = noisy_gray(0.08), Likelihood(kind, 1, "learned")
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(torch.zeros(1, 1, 64, 64), images).mean().backward()
        optimizer.step()
    assert likelihood.log_scale.exp().item() * unit == pytest.approx(0.08, rel=0.08)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_optimal_scale_maximizes_the_likelihood(kind: str) -> None:
    images, output = noisy_gray(0.08), torch.full((1, 1, 64, 64), 0.1)
    likelihood = Likelihood(kind, 1, "optimal")
    optimum = likelihood.nll(output, images)
    fixed = {
        scale: Likelihood(kind, 1, scale).nll(output, images).item()
        for scale in torch.linspace(0.02, 0.2, 400).tolist()
    }
    assert optimum.item() == pytest.approx(min(fixed.values()), rel=1e-4)
    assert min(fixed.values()) > optimum.item() - 0.05


def test_optimal_scale_in_evaluation_is_the_average() -> None:
    """In evaluation mode the scale is the moving average of training and does not depend on the images."""
    images, output = noisy_gray(0.08), torch.zeros(1, 1, 64, 64)
    likelihood = Likelihood("gaussian", 1, "optimal")
    for _ in range(500):
        likelihood.nll(output, images)
    likelihood.eval()
    assert likelihood.log_scale.exp().item() == pytest.approx((images - 0.5).square().mean().sqrt().item(), rel=0.01)
    before = likelihood.log_scale.clone()
    far = likelihood.nll(output + 3, images)
    assert torch.equal(likelihood.log_scale, before)
    expected = Likelihood("gaussian", 1, before.exp().item()).nll(output + 3, images)
    torch.testing.assert_close(far, expected, rtol=1e-4, atol=0)


def test_optimal_scale_has_the_profile_gradient() -> None:
    """The gradient is that of D/2 log MSE, because the scale's own gradient is 0 at its optimum."""
    output = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8).requires_grad_()
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Likelihood("gaussian", 1, "optimal").double().nll(output, images).sum().backward()
    ours, output.grad = output.grad.clone(), None
    (32 * torch.log((images - torch.sigmoid(output)).square().mean())).backward()
    torch.testing.assert_close(ours, output.grad, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["bernoulli", "logistic"])
def test_optimal_scale_of_other_kinds_raises(kind: str) -> None:
    with pytest.raises(ValueError, match="scale=optimal"):
        Likelihood(kind, 1, "optimal")


@pytest.mark.parametrize("kind", ["logistic", "gaussian", "laplace", "bernoulli"])
def test_nll_gradients_agree_with_differences(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    images = torch.randint(0, 256, (2, 1, 3, 3), generator=generator).double() / 255
    likelihood = Likelihood(kind, 1, "learned").double()
    assert torch.autograd.gradcheck(lambda x: likelihood.nll(x, images), output)


def test_optimal_scale_ignores_nonfinite_errors() -> None:
    likelihood = Likelihood("gaussian", 1, "optimal")
    before = likelihood.log_scale.clone()
    likelihood.nll(torch.full((1, 1, 4, 4), float("nan")), noisy_gray(0.1)[:, :, :4, :4])
    assert torch.equal(likelihood.log_scale, before)


@pytest.mark.parametrize(("kind", "distribution"), [("gaussian", Normal), ("laplace", Laplace)])
def test_optimal_scale_belongs_to_the_channel(kind: str, distribution: type[Normal]) -> None:
    """Two channels of unequal noise: each has the scale that fits its own noise, and moves its own average by 1 %."""
    images = torch.cat([noisy_gray(0.08), noisy_gray(0.02)], dim=1)
    likelihood = Likelihood(kind, 2, "optimal")
    nll = likelihood.nll(torch.zeros(1, 2, 64, 64), images)
    errors = (images - 0.5).abs()
    scales = errors.mean((0, 2, 3)) if kind == "laplace" else errors.square().mean((0, 2, 3)).sqrt()
    expected = math.log(255) - distribution(0.5, scales.view(1, 2, 1, 1)).log_prob(images)
    torch.testing.assert_close(nll, expected.sum((1, 2, 3)))
    average = 0.99 * math.log(0.1) + 0.01 * scales.log()
    torch.testing.assert_close(likelihood.log_scale.flatten(), average)


@pytest.mark.parametrize(("kind", "constant"), [("gaussian", math.log(2 * math.pi) / 2), ("laplace", math.log(2))])
def test_optimal_scale_of_a_perfect_fit_has_a_floor(kind: str, constant: float) -> None:
    output = torch.full((1, 1, 8, 8), 0.3)
    nll = Likelihood(kind, 1, "optimal").nll(output, torch.sigmoid(output))
    assert nll.item() == pytest.approx(64 * (math.log(255) - 7 + constant), rel=1e-5)
