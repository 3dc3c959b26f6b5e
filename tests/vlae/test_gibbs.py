"""Gibbs chains and top-k curves of linear-Gaussian models, whose errors and distances have closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlae.gibbs import gibbs_chain, gibbs_curve, gibbs_sequence, top_k_curve

Latents = list[torch.Tensor]


class Fake:
    """A model with one dimension per rung, whose images are a linear function of the latents."""

    latent_dims: tuple[int, ...] = (1, 1)

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        return [torch.randn(count, 1, generator=generator) for _ in self.latent_dims]


class StackedVae(Fake):
    """z_1 ~ N(0, 1), z_0 = a z_1 + s e, x = z_0 with a^2 + s^2 = 1; q(z_0|x) = N(x, t^2), q(z_1|z_0) the exact one."""

    a, s, t = 0.8, 0.6, 0.1

    def infer(self, images: torch.Tensor, noise: Latents) -> SimpleNamespace:
        bottom = images.flatten(1) + self.t * noise[0]
        return SimpleNamespace(latents=[bottom, self.a * bottom + self.s * noise[1]])

    def prior(self, noise: Latents, fixed: list[torch.Tensor | None] | None = None) -> Latents:
        fixed = fixed or [None, None]
        top = noise[1] if fixed[1] is None else fixed[1]
        return [self.a * top + self.s * noise[0] if fixed[0] is None else fixed[0], top]

    def mean_image(self, latents: Latents) -> torch.Tensor:
        return latents[0][:, :, None, None]


class Ladder(Fake):
    """x = sum of w_l z_l with independent rungs; the posterior reads each z_l from a pixel of its own."""

    latent_dims = (1, 1, 1)
    weights = (1.0, 2.0, 3.0)

    def infer(self, images: torch.Tensor, noise: Latents) -> SimpleNamespace:
        return SimpleNamespace(latents=[images[:, :, 0, rung] / w for rung, w in enumerate(self.weights)])

    def prior(self, noise: Latents, fixed: list[torch.Tensor | None] | None = None) -> Latents:
        return [e if z is None else z for e, z in zip(noise, fixed or [None] * 3, strict=True)]

    def mean_image(self, latents: Latents) -> torch.Tensor:
        return torch.cat([z * w for z, w in zip(latents, self.weights, strict=True)], 1)[:, None, None]


class Chain(Fake):
    """z_0 ~ N(a x + c, s^2) and x = z_0 + b z_1: after n steps x is an AR(1). The prior is N(5, 1 + b^2)."""

    a, b, c, s = 0.7, 0.4, 0.3, 0.5

    def infer(self, images: torch.Tensor, noise: Latents) -> SimpleNamespace:
        # z_1 is far from its prior, because then a chain that decoded it would fail the test.
        return SimpleNamespace(latents=[self.a * images.flatten(1) + self.c + self.s * noise[0], 9 + noise[1]])

    def prior(self, noise: Latents, fixed: object = None) -> Latents:
        return [5 + noise[0], noise[1]]

    def mean_image(self, latents: Latents) -> torch.Tensor:
        return (latents[0] + self.b * latents[1])[:, :, None, None]

    def moments(self, steps: int, mean: float, variance: float) -> tuple[float, float]:
        """Return mean and variance of x after some steps."""
        decay = self.a**steps
        drift = self.c * (1 - decay) / (1 - self.a)
        spread = (self.s**2 + self.b**2) * (1 - decay**2) / (1 - self.a**2)
        return decay * mean + drift, decay**2 * variance + spread


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_top_k_curve_of_a_stack_has_its_closed_form() -> None:
    """With x ~ N(0, 1): k = 0 is an unrelated sample, k = 1 goes x -> z_0 -> z_1 -> z_0' -> x'."""
    a2, t2 = StackedVae.a**2, StackedVae.t**2
    images = torch.randn(40_000, 1, 1, 1, generator=generator(1))
    curve = top_k_curve(StackedVae(), images, generator())
    top_only = (1 - a2) ** 2 + a2**2 * t2 + (1 + a2) * StackedVae.s**2
    np.testing.assert_allclose(curve, [2, top_only, t2], rtol=0.03)
    assert curve.dtype == np.float64


def test_top_k_curve_of_a_ladder_has_its_closed_form() -> None:
    """Each rung from the prior instead of the posterior adds 2 w^2 in one of the three pixels."""
    images = torch.randn(20_000, 1, 1, 3, generator=generator(1)) * torch.tensor(Ladder.weights)
    curve = top_k_curve(Ladder(), images, generator())
    np.testing.assert_allclose(curve, [28 / 3, 10 / 3, 2 / 3, 0], rtol=0.03, atol=1e-10)


def test_gibbs_chain_has_the_moments_of_an_ar1() -> None:
    images = 2 + 1.5 * torch.randn(40_000, 1, 1, 1, generator=generator(1))
    chain = list(gibbs_chain(Chain(), images, 4, generator()))
    assert len(chain) == 4
    for steps, after in enumerate(chain, start=1):
        mean, variance = Chain().moments(steps, 2, 1.5**2)
        assert after.mean().item() == pytest.approx(mean, abs=0.02)
        assert after.var().item() == pytest.approx(variance, rel=0.02)


def test_gibbs_sequence_has_the_start_and_chosen_steps() -> None:
    images = torch.randn(5, 1, 1, 1, generator=generator(1))
    sequence = gibbs_sequence(Chain(), images, (1, 3), generator())
    chain = list(gibbs_chain(Chain(), images, 3, generator()))
    torch.testing.assert_close(sequence, torch.stack([images, chain[0], chain[2]], 1))


def test_gibbs_curve_has_the_distances_of_gaussians() -> None:
    """In one dimension the Frechet distance is (m - m')^2 + (s - s')^2; images at odd indices are the real ones."""
    images = 2 + 1.5 * torch.randn(60_000, 1, 1, 1, generator=generator(1))
    images[::2] += 1
    curve = gibbs_curve(Chain(), images, lambda batch: batch.flatten(1), steps=(1, 2, 6), generator=generator())

    def distance(mean: float, variance: float) -> float:
        return (mean - 2) ** 2 + (variance**0.5 - 1.5) ** 2

    assert curve.steps == (1, 2, 6)
    expected = [distance(*Chain().moments(steps, 3, 1.5**2)) for steps in curve.steps]
    np.testing.assert_allclose(curve.distances, expected, rtol=0.05, atol=0.02)
    assert curve.start == pytest.approx(1, abs=0.05)
    assert curve.ancestral == pytest.approx(distance(5, 1 + Chain.b**2), rel=0.02)
