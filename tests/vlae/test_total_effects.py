"""Total effects against known Sobol indices."""

import math

import pytest
import torch

from vlae.total_effects import total_effects


class Additive:
    """A model with image = 0.5 + sum_l a_l e_l pattern_l, whose total effects are known."""

    latent_dims = (1, 1, 1)

    def __init__(self, patterns: torch.Tensor, product: float = 0.0) -> None:
        self.patterns, self.product = patterns, product

    def noise(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        return [torch.randn(count, 1, generator=generator) for _ in range(3)]

    def prior(self, noise: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(noise)

    def mean_image(self, latents: list[torch.Tensor]) -> torch.Tensor:
        image = sum(z[:, :, None, None] * pattern for z, pattern in zip(latents, self.patterns, strict=True))
        return 0.5 + image + self.product * (latents[0] * latents[1])[:, :, None, None]


FLAT, STRIPES = torch.ones(1, 4, 4), torch.tensor([1.0, -1.0]).repeat(1, 4, 2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_total_effects_of_an_additive_model_are_exact() -> None:
    effects = total_effects(Additive(torch.stack([2 * FLAT, STRIPES, 0 * FLAT])), 20_000, generator())
    assert effects.pixels == pytest.approx([0.8, 0.2, 0], abs=0.02)
    assert effects.color == pytest.approx([1, 0, 0], abs=0.02)
    assert effects.mean_color_share[:2] == pytest.approx([1, 0], abs=1e-5)
    assert math.isnan(effects.mean_color_share[2])
    assert effects.classifier is None
    assert effects.flip_rate is None


def test_total_effects_count_an_interaction_twice() -> None:
    """Var = a^2 + b^2 + c^2 with c e0 e1: total effects (a^2 + c^2) / Var and (b^2 + c^2) / Var."""
    effects = total_effects(Additive(torch.stack([FLAT, FLAT, 0 * FLAT]), product=1.0), 40_000, generator())
    assert effects.pixels == pytest.approx([2 / 3, 2 / 3, 0], abs=0.025)


def test_flip_rate_of_a_sign_has_its_closed_form() -> None:
    """Resampling a fraction r of the variance leaves a correlation of 1 - r, so P(flip) = arccos(1 - r) / pi.

    Each of two class probabilities has a variance of 1/4, so S = P(flip) / 2 / (1/4).
    """

    def sign(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((images.mean((1, 2, 3)) > 0.5).long(), 2).float()

    model = Additive(torch.stack([2 * FLAT, FLAT + 5 * STRIPES, 0 * FLAT]))
    effects = total_effects(model, 20_000, generator(), sign)
    flips = [math.acos(1 - fraction) / math.pi for fraction in (0.8, 0.2, 0)]
    assert effects.flip_rate == pytest.approx(flips, abs=0.012)
    assert effects.classifier == pytest.approx([2 * flip for flip in flips], abs=0.025)
    assert effects.pixels[1] > effects.pixels[0]  # large in pixels, small in the class


def test_total_effects_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Additive(torch.stack([2 * FLAT, STRIPES, FLAT]), product=0.3)
    whole = total_effects(model, 250, generator(), lambda images: images.flatten(1).softmax(1))
    monkeypatch.setattr("vlae.total_effects.eval_batch_size", lambda device: 7)
    chunked = total_effects(model, 250, generator(), lambda images: images.flatten(1).softmax(1))
    for name, values in vars(whole).items():
        assert getattr(chunked, name) == pytest.approx(values, rel=1e-9), name


def test_total_effects_use_the_variance_of_torch() -> None:
    """With a single active rung, S = (mean squared change / 2) / variance of the same samples."""
    model, draws = Additive(torch.stack([FLAT, 0 * FLAT, 0 * FLAT])), generator()
    first, second = model.noise(50, draws)[0].double(), model.noise(50, draws)[0].double()
    expected = ((first - second).square().mean() / 2 / first.var()).item()
    assert total_effects(model, 50, generator()).pixels[0] == pytest.approx(expected, rel=1e-5)


def test_total_effects_of_a_constant_are_nan() -> None:
    effects = total_effects(Additive(torch.zeros(3, 1, 4, 4)), 500, generator(), lambda images: images.mean((2, 3)))
    assert all(math.isnan(effect) for effect in effects.pixels + effects.color + (effects.classifier or []))
    assert effects.flip_rate == [0, 0, 0]


def test_total_effects_of_one_pair_raise() -> None:
    with pytest.raises(ValueError, match="count"):
        total_effects(Additive(torch.stack([FLAT] * 3)), 1, generator())
