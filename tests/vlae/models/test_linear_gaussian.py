"""The bounds of linear-Gaussian models, whose marginal likelihood is known.

Weights with orthogonal columns make the exact posteriors diagonal, so each model can represent its own posterior.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vlae.config import HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model
from vlae.objective import importance_weighted_bound

SHAPE = (1, 4, 4)
PIXELS, SIGMA, BELOW = 16, 0.2, 0.6
GAINS_0, GAINS_1 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.9, 0.4], dtype=torch.float64)
OFFSET = 0.4


def orthogonal(columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.linalg.qr(torch.randn(PIXELS, columns, generator=generator, dtype=torch.float64)).Q


class Linear(nn.Module):
    """N(weight x + bias, sigma)."""

    def __init__(self, weight: Tensor, bias: Tensor | float, sigma: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.log_sigma = weight, bias, torch.log(sigma)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        mean = features.flatten(1) @ self.weight.T + self.bias
        return DiagonalGaussian(mean, self.log_sigma.expand_as(mean))


class Pixels(nn.Module):
    """A decoder that is a matrix for each rung."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = weights  # per rung, the top one first

    def forward(self, top: Tensor, latents: Sequence[Tensor] = (), gates: None = None) -> Tensor:
        rungs = zip((top, *latents), self.weights, strict=True)
        return OFFSET + sum(z @ weight.T for z, weight in rungs).view(-1, *SHAPE)


class ImageTwice(nn.Module):
    """A trunk without layers, so both rungs read the image."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, images]


def posterior(weight: Tensor, prior_variance: Tensor) -> Linear:
    """Return p(z|x) of z ~ N(0, prior_variance), x ~ N(OFFSET + weight z, SIGMA^2), for orthogonal columns."""
    precision = 1 / prior_variance + weight.square().sum(0) / SIGMA**2
    gain = weight.T / SIGMA**2 / precision[:, None]
    return Linear(gain, -(gain.sum(1) * OFFSET), precision.rsqrt())


def base(config: VaeConfig | VlaeConfig | HvaeConfig | LvaeConfig) -> HierarchicalModel:
    model = build_model(config, SHAPE).double()
    model.likelihood.mean = lambda output: output
    return model.eval()


COMMON = {"network": "mlp", "likelihood": "gaussian", "likelihood_scale": SIGMA, "hidden_dims": 4}


def flat() -> tuple[HierarchicalModel, Tensor]:
    model = base(VaeConfig(latent_dims=(3,), **COMMON))
    weight = orthogonal(3) * GAINS_0
    model.encoder, model.head = nn.Flatten(), posterior(weight, torch.ones(3, dtype=torch.float64))
    model.decoder = Pixels(weight)
    return model, weight @ weight.T


def ladder() -> tuple[HierarchicalModel, Tensor]:
    model = base(VlaeConfig(latent_dims=(3, 2), **COMMON))
    both = orthogonal(5) * torch.cat([GAINS_0, GAINS_1])
    joint = posterior(both, torch.ones(5, dtype=torch.float64))
    rungs = [slice(0, 3), slice(3, 5)]
    model.trunk = ImageTwice()
    model.rung_encoders = nn.ModuleList(nn.Flatten() for _ in rungs)
    model.heads = nn.ModuleList(
        Linear(joint.weight[rung], joint.bias[rung], joint.log_sigma[rung].exp()) for rung in rungs
    )
    model.decoder = Pixels(both[:, rungs[1]], both[:, rungs[0]])
    return model, both @ both.T


def stack_weights() -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps z_0 -> pixels and z_1 -> z_0 (two of its three dimensions), and the marginal variance of z_0."""
    up = torch.zeros(3, 2, dtype=torch.float64)
    up[0, 0], up[1, 1] = GAINS_1
    return orthogonal(3) * GAINS_0, up, (up @ up.T).diag() + BELOW**2


def prior_of_bottom(up: Tensor) -> Linear:
    return Linear(up, 0.0, torch.full((3,), BELOW, dtype=torch.float64))


def bottom_up() -> tuple[HierarchicalModel, Tensor]:
    weight, up, variance = stack_weights()
    model = base(HvaeConfig(latent_dims=(3, 2), **COMMON))
    precision = 1 + up.square().sum(0) / BELOW**2
    model.encoder, model.head = nn.Flatten(), posterior(weight, variance)
    model.bottom_up = nn.ModuleList([Linear(up.T / BELOW**2 / precision[:, None], 0.0, precision.rsqrt())])
    model.top_down = nn.ModuleList([prior_of_bottom(up)])
    model.decoder = Pixels(weight)
    return model, weight @ torch.diag(variance) @ weight.T


def top_down() -> tuple[HierarchicalModel, Tensor]:
    weight, up, variance = stack_weights()
    model = base(LvaeConfig(latent_dims=(3, 2), **COMMON))
    power = weight.square().sum(0)
    # The likelihood of z_0, and p(z_1|x) by way of z_0's least-squares estimate, whose noise is SIGMA^2 / power.
    estimate = weight.T / power[:, None]
    noise = BELOW**2 + SIGMA**2 / power
    precision = 1 + up.square().div(noise[:, None]).sum(0)
    gain = (up / noise[:, None]).T @ estimate / precision[:, None]
    model.encoder = nn.Flatten()
    model.bottom_up = nn.ModuleList([nn.Identity()])
    model.heads = nn.ModuleList(
        [
            Linear(estimate, -(estimate.sum(1) * OFFSET), SIGMA * power.rsqrt()),
            Linear(gain, -(gain.sum(1) * OFFSET), precision.rsqrt()),
        ]
    )
    model.top_down = nn.ModuleList([prior_of_bottom(up)])
    model.decoder = Pixels(weight)
    return model, weight @ torch.diag(variance) @ weight.T


MODELS = {"vae": flat, "vlae": ladder, "hvae": bottom_up, "lvae": top_down}


def images_and_marginal(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return images of the model, and log p(x) of each as a density per gray level."""
    noise = SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    law = MultivariateNormal(torch.full((PIXELS,), OFFSET, dtype=torch.float64), covariance + noise)
    root = torch.linalg.cholesky(covariance + noise)
    draws = torch.randn(count, PIXELS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    flat_images = OFFSET + draws @ root.T
    return flat_images.view(-1, *SHAPE), law.log_prob(flat_images) - PIXELS * math.log(255)


def noise_of(model: HierarchicalModel, count: int, seed: int) -> list[Tensor]:
    return [values.double() for values in model.noise(count, torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_bounds_with_the_exact_posterior_equal_log_p_x(name: str) -> None:
    model, covariance = MODELS[name]()
    images, marginal = images_and_marginal(covariance, 6)
    # Every importance weight is p(x, z) / p(z|x) = p(x), whatever z is.
    for samples in (1, 7):
        bound = importance_weighted_bound(model, images, samples, torch.Generator().manual_seed(0))
        torch.testing.assert_close(bound, marginal, rtol=1e-9, atol=1e-5)
    many = images[:2].repeat_interleave(20_000, 0)
    terms = model(many, noise_of(model, len(many), 1))
    elbo = -(terms.reconstruction + terms.kl.sum(1)).view(2, -1).mean(1)
    torch.testing.assert_close(elbo, marginal[:2], rtol=0, atol=0.06)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_bounds_with_a_wrong_posterior_converge(name: str) -> None:
    model, covariance = MODELS[name]()
    wrong = model.head if name in ("vae", "hvae") else model.heads[0]
    wrong.bias, wrong.log_sigma = wrong.bias + 0.3, wrong.log_sigma + 0.4
    images, marginal = images_and_marginal(covariance, 4)
    bounds = [
        importance_weighted_bound(model, images, samples, torch.Generator().manual_seed(0)).mean().item()
        for samples in (1, 20, 2000)
    ]
    target = marginal.mean().item()
    many = images.repeat_interleave(5_000, 0)
    terms = model(many, noise_of(model, len(many), 1))
    elbo = -(terms.reconstruction + terms.kl.sum(1)).mean().item()
    assert elbo < target - 0.2
    assert bounds[1] > elbo + 0.1
    assert bounds[2] == pytest.approx(target, abs=0.03)


def test_elbo_gap_is_the_kl_of_the_posterior() -> None:
    model, covariance = flat()
    exact = model.head
    images, marginal = images_and_marginal(covariance, 3)
    exact_posterior = exact(images)
    model.head = Linear(exact.weight, exact.bias + 0.2, exact.log_sigma.exp() * 1.3)
    gap = model.head(images).kl_to(exact_posterior).sum(1)
    many = images.repeat_interleave(40_000, 0)
    terms = model(many, noise_of(model, len(many), 2))
    elbo = -(terms.reconstruction + terms.kl.sum(1)).view(3, -1).mean(1)
    torch.testing.assert_close(marginal - elbo, gap, rtol=0.02, atol=0)
