"""Latent traversals of a transparent model, image by image, and of every real model."""

import pytest
import torch
from helpers.small_models import CONFIGS, perturb, small

from vlae.models.base import HierarchicalModel
from vlae.traversals import infer_noise, latent_traversals, manifold, resample_rung, sample_images, swap_rungs


class Transparent:
    """A stacked model whose image shows the latents: each latent dimension is one pixel."""

    latent_dims = (3, 1)

    def noise(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        return [torch.randn(count, dim, generator=generator) for dim in self.latent_dims]

    def prior(self, noise: list[torch.Tensor]) -> list[torch.Tensor]:
        return [noise[0] + 10 * noise[1], noise[1]]

    def mean_image(self, latents: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(latents, 1)[:, None, None]


def transparent_noise(count: int, seed: int = 0) -> list[torch.Tensor]:
    return Transparent().noise(count, torch.Generator().manual_seed(seed))


def make_model(name: str) -> HierarchicalModel:
    """Return a model whose priors are far from standard, like those of a trained stack."""
    return perturb(small(name, (3, 2, 2), (1, 16, 16), hidden_dims=8), 0.15).eval()


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> HierarchicalModel:
    return make_model(request.param)


def test_sample_images_in_batches_equals_one_pass() -> None:
    noise = transparent_noise(600)
    expected = Transparent().mean_image(Transparent().prior(noise))
    torch.testing.assert_close(sample_images(Transparent(), noise), expected)


@torch.no_grad()
def test_infer_noise_inverts_the_prior(model: HierarchicalModel) -> None:
    images = random_images(300)  # more than one batch
    noise = infer_noise(model, images)
    assert [values.shape for values in noise] == [(300, dim) for dim in model.latent_dims]
    assert not any(values.requires_grad for values in noise)
    for latent, mean in zip(model.prior(noise), model.means(images), strict=True):
        torch.testing.assert_close(latent, mean, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_infer_noise_of_a_stack_differs_from_its_means() -> None:
    model, images = make_model("hvae"), random_images(5)
    noise, means = infer_noise(model, images), model.means(images)
    torch.testing.assert_close(noise[-1], means[-1])
    assert (noise[0] - means[0]).abs().max() > 0.1


@pytest.mark.parametrize("rung", [0, 1])
def test_resample_rung_changes_one_rung_per_row(rung: int) -> None:
    base = transparent_noise(4)
    block = resample_rung(Transparent(), base, rung, 5, torch.Generator().manual_seed(1))
    assert block.shape == (4, 5, 1, 1, 4)
    for row in range(4):
        noise = [values[row : row + 1].expand(5, -1) for values in base]
        noise[rung] = transparent_noise(5, seed=1)[rung]
        torch.testing.assert_close(block[row], Transparent().mean_image(Transparent().prior(noise)))


def test_manifold_is_a_grid_of_two_dims() -> None:
    base = transparent_noise(1)
    grid = manifold(Transparent(), base, 0, count=5, dims=(2, 0))[:, :, 0, 0]
    latents = grid[..., :3] - 10 * base[1]
    assert grid.shape == (5, 5, 4)
    for row in range(5):
        for column in range(5):
            expected = torch.tensor([row - 2, base[0][0, 1], column - 2])
            torch.testing.assert_close(latents[row, column], expected, atol=1e-5, rtol=0)
    assert (grid[..., 3] == base[1]).all()


def test_manifold_with_a_row_per_tile_varies_other_rungs() -> None:
    base = transparent_noise(9)
    grid = manifold(Transparent(), base, 0, count=3, span=1.5)[:, :, 0, 0].view(9, 4)
    torch.testing.assert_close(grid[:, 3:], base[1])
    latents = grid[:, :3] - 10 * base[1]
    torch.testing.assert_close(latents[:, 2], base[0][0, 2].expand(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[:3, 0], torch.tensor([-1.5, 0, 1.5]), atol=1e-5, rtol=0)


def test_manifold_of_a_rung_of_one_dim_is_a_row() -> None:
    base = transparent_noise(1)
    row = manifold(Transparent(), base, 1, count=5)[:, :, 0, 0]
    assert row.shape == (1, 5, 4)
    torch.testing.assert_close(row[0, :, 3], torch.linspace(-2, 2, 5))
    torch.testing.assert_close(row[0, :, :3], base[0] + 10 * torch.linspace(-2, 2, 5)[:, None])


@pytest.mark.parametrize(("rows", "dims"), [(2, (0, 1)), (1, (0, 3)), (1, (1, 1)), (1, (-1, 0))])
def test_manifold_invalid_base_or_dims_raises(rows: int, dims: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="base" if rows == 2 else "dims"):
        manifold(Transparent(), transparent_noise(rows), 0, count=3, dims=dims)


def test_latent_traversals_change_one_dim(model: HierarchicalModel) -> None:
    """Each image is that of the noise with one changed entry; at its own position it is the image itself."""
    noise, rung = infer_noise(model, random_images(1)), len(model.latent_dims) - 1
    dims = [1, 0]
    positions = torch.tensor([[-3.0, 0.0, 2.0], [-1.0, 1.0, 3.0]])
    positions[1, 1] = noise[rung][0, 0]
    rows = latent_traversals(model, noise, rung, dims, positions)
    assert rows.shape == (2, 3, 1, 16, 16)
    torch.testing.assert_close(rows[1, 1], sample_images(model, noise)[0])
    for row, dim in enumerate(dims):
        for step in range(3):
            changed = [values.clone() for values in noise]
            changed[rung][0, dim] = positions[row, step]
            torch.testing.assert_close(rows[row, step], sample_images(model, changed)[0])


def test_latent_traversals_do_not_modify_the_noise(model: HierarchicalModel) -> None:
    noise = infer_noise(model, random_images(1))
    before = [values.clone() for values in noise]
    latent_traversals(model, noise, 0, [0, 2], torch.zeros(2, 4))
    assert all(map(torch.equal, noise, before))


@pytest.mark.parametrize(("images", "rows"), [(2, 1), (1, 2)])
def test_latent_traversals_invalid_shapes_raise(images: int, rows: int) -> None:
    model = make_model("vae")
    with pytest.raises(ValueError, match="noise, positions"):
        latent_traversals(model, infer_noise(model, random_images(images)), 0, [0], torch.zeros(rows, 3))


def test_swap_rungs_gives_all_combinations_of_a_pair(model: HierarchicalModel) -> None:
    first, second = (
        [values[rows] for values in infer_noise(model, random_images(4))] for rows in (slice(2), slice(2, 4))
    )
    rungs = len(model.latent_dims)
    swaps = swap_rungs(model, first, second)
    assert swaps.shape == (2, 2**rungs, 1, 16, 16)
    torch.testing.assert_close(swaps[:, 0], sample_images(model, first))
    torch.testing.assert_close(swaps[:, -1], sample_images(model, second))
    for index in range(2**rungs):
        mixed = [(first, second)[(index >> rung) & 1][rung] for rung in range(rungs)]
        torch.testing.assert_close(swaps[:, index], sample_images(model, mixed))
    torch.testing.assert_close(swap_rungs(model, second, first), swaps.flip(1))
