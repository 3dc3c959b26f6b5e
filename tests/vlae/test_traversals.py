"""Total effects against the Sobol indices of functions that have known ones."""

import pytest
import torch

from vlae.build import build_model
from vlae.config import HvaeConfig, VlaeConfig
from vlae.traversals import resample_rung, total_effects


class Additive:
    """image = 0.5 + sum of a_l e_l pattern_l: the Sobol total effects are known."""

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


def test_total_effects_of_an_additive_model() -> None:
    flat, stripes = torch.ones(1, 4, 4), torch.tensor([1.0, -1.0]).repeat(1, 4, 2)
    model = Additive(torch.stack([2 * flat, stripes, 0 * flat]))
    effects = total_effects(model, 40_000, torch.Generator().manual_seed(0))
    assert effects.pixels == pytest.approx([0.8, 0.2, 0], abs=0.02)
    assert effects.colour == pytest.approx([1, 0, 0], abs=0.02)
    assert effects.colour_share[:2] == pytest.approx([1, 0], abs=1e-5)


def test_total_effects_count_an_interaction_for_both() -> None:
    """Var = a^2 + b^2 + c^2 with c e0 e1: total effects (a^2 + c^2) / Var and (b^2 + c^2) / Var."""
    flat = torch.ones(1, 2, 2)
    effects = total_effects(
        Additive(torch.stack([flat, flat, 0 * flat]), product=1.0), 60_000, torch.Generator().manual_seed(0)
    )
    assert effects.pixels == pytest.approx([2 / 3, 2 / 3, 0], abs=0.02)


@pytest.mark.parametrize(
    "config", [VlaeConfig(latent_dims=(2, 3), width=4, hidden=8), HvaeConfig(latent_dims=(2, 3), width=4, hidden=8)]
)
def test_a_block_changes_one_rung_and_starts_from_its_row(config: VlaeConfig | HvaeConfig) -> None:
    model = build_model(config, (1, 28, 28))
    base = model.noise(4, torch.Generator().manual_seed(0))
    block = resample_rung(model, base, 0, 5, torch.Generator().manual_seed(1))
    assert block.shape == (4, 5, 1, 28, 28)
    redrawn = model.noise(5, torch.Generator().manual_seed(1))[0]
    expected = model.mean_image(model.prior([redrawn, base[1][2:3].expand(5, -1)]))
    torch.testing.assert_close(block[2], expected)
