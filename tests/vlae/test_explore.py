"""Noise of given images, one dim of it moved, and rungs swapped between two of them."""

from functools import partial

import pytest
import torch

from vlae.config import HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model
from vlae.traversals import image_noise, latent_strips, rung_swaps, sample_images

CONFIGS = {
    "vlae": VlaeConfig,
    "hvae": HvaeConfig,
    "lvae": LvaeConfig,
    "vae": VaeConfig,
    "axes": partial(VlaeConfig, prior_shape=4),
}


def tiny(name: str) -> HierarchicalModel:
    """With priors that are far from standard, as those of a trained stack."""
    dims = (3,) if name == "vae" else (3, 2, 2)
    model = build_model(CONFIGS[name](latent_dims=dims, width=4, hidden_dims=8), (1, 16, 16), seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def pixels(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> HierarchicalModel:
    return tiny(request.param)


@torch.no_grad()
def test_the_prior_makes_the_means_of_the_noise(model: HierarchicalModel) -> None:
    images = pixels(300)  # more than one batch
    noise = image_noise(model, images)
    assert [part.shape for part in noise] == [(300, dim) for dim in model.latent_dims]
    assert not any(part.requires_grad for part in noise)
    for made, mean in zip(model.prior(noise), model.means(images), strict=True):
        torch.testing.assert_close(made, mean, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_noise_of_a_stack_is_not_its_latents() -> None:
    model, images = tiny("hvae"), pixels(5)
    noise, means = image_noise(model, images), model.means(images)
    torch.testing.assert_close(noise[-1], means[-1])
    assert (noise[0] - means[0]).abs().max() > 0.1


def test_a_strip_moves_one_dim_and_passes_the_image_itself(model: HierarchicalModel) -> None:
    noise, rung = image_noise(model, pixels(1)), len(model.latent_dims) - 1
    dims = [1, 0]
    positions = torch.tensor([[-3.0, 0.0, 2.0], [-1.0, 1.0, 3.0]])
    positions[1, 1] = noise[rung][0, 0]
    strips = latent_strips(model, noise, rung, dims, positions)
    assert strips.shape == (2, 3, 1, 16, 16)
    torch.testing.assert_close(strips[1, 1], sample_images(model, noise)[0])
    for row, dim in enumerate(dims):
        for step in range(3):
            moved = [part.clone() for part in noise]
            moved[rung][0, dim] = positions[row, step]
            torch.testing.assert_close(strips[row, step], sample_images(model, moved)[0])


def test_a_strip_leaves_its_noise_alone(model: HierarchicalModel) -> None:
    noise = image_noise(model, pixels(1))
    before = [part.clone() for part in noise]
    latent_strips(model, noise, 0, [0, 2], torch.zeros(2, 4))
    assert all(torch.equal(part, old) for part, old in zip(noise, before, strict=True))


@pytest.mark.parametrize(("images", "rows"), [(2, 1), (1, 2)])
def test_a_strip_is_of_one_image_and_has_positions_for_each_dim(images: int, rows: int) -> None:
    model = tiny("vae")
    with pytest.raises(ValueError, match="rows of positions"):
        latent_strips(model, image_noise(model, pixels(images)), 0, [0], torch.zeros(rows, 3))


def test_swaps_are_all_mixtures_of_a_pair(model: HierarchicalModel) -> None:
    first, second = ([part[some] for part in image_noise(model, pixels(4))] for some in (slice(2), slice(2, 4)))
    rungs = len(model.latent_dims)
    swaps = rung_swaps(model, first, second)
    assert swaps.shape == (2, 2**rungs, 1, 16, 16)
    torch.testing.assert_close(swaps[:, 0], sample_images(model, first))
    torch.testing.assert_close(swaps[:, -1], sample_images(model, second))
    for number in range(2**rungs):
        mixed = [(first, second)[(number >> rung) & 1][rung] for rung in range(rungs)]
        torch.testing.assert_close(swaps[:, number], sample_images(model, mixed))
    turned = rung_swaps(model, second, first)
    torch.testing.assert_close(turned, swaps.flip(1))
