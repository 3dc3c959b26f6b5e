"""Pictures of one rung, tile by tile."""

import pytest
import torch

from vlae.traversals import manifold, resample_rung, sample_images


class Plain:
    """Each latent dim is one pixel of a row of its rung: an image shows the latents themselves."""

    latent_dims = (3, 1)

    def noise(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        return [torch.randn(count, dim, generator=generator) for dim in self.latent_dims]

    def prior(self, noise: list[torch.Tensor]) -> list[torch.Tensor]:
        return [noise[0] + 10 * noise[1], noise[1]]  # a stack: rung 0 hangs on rung 1

    def mean_image(self, latents: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(latents, 1)[:, None, None]


def drawn(count: int, seed: int = 0) -> list[torch.Tensor]:
    return Plain().noise(count, torch.Generator().manual_seed(seed))


def test_many_samples_are_those_of_one_pass() -> None:
    noise = drawn(600)
    torch.testing.assert_close(sample_images(Plain(), noise), Plain().mean_image(Plain().prior(noise)))


@pytest.mark.parametrize("rung", [0, 1])
def test_a_block_changes_one_rung_and_starts_from_its_row(rung: int) -> None:
    base = drawn(4)
    block = resample_rung(Plain(), base, rung, 5, torch.Generator().manual_seed(1))
    assert block.shape == (4, 5, 1, 1, 4)
    for row in range(4):
        noise = [part[row : row + 1].expand(5, -1) for part in base]
        noise[rung] = drawn(5, seed=1)[rung]
        torch.testing.assert_close(block[row], Plain().mean_image(Plain().prior(noise)))


def test_a_manifold_is_a_grid_of_two_dims() -> None:
    base = drawn(1)
    sheet = manifold(Plain(), base, 0, count=5, dims=(2, 0))[:, :, 0, 0]
    latents = sheet[..., :3] - 10 * base[1]
    assert sheet.shape == (5, 5, 4)
    for row in range(5):
        for column in range(5):
            expected = torch.tensor([row - 2, base[0][0, 1], column - 2])
            torch.testing.assert_close(latents[row, column], expected, atol=1e-5, rtol=0)
    assert (sheet[..., 3] == base[1]).all()


def test_other_rungs_differ_from_tile_to_tile_where_wanted() -> None:
    base = drawn(9)
    sheet = manifold(Plain(), base, 0, count=3, span=1.5)[:, :, 0, 0].view(9, 4)
    torch.testing.assert_close(sheet[:, 3:], base[1])
    latents = sheet[:, :3] - 10 * base[1]
    torch.testing.assert_close(latents[:, 2], base[0][0, 2].expand(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[:3, 0], torch.tensor([-1.5, 0, 1.5]), atol=1e-5, rtol=0)


def test_a_rung_of_one_dim_is_a_strip() -> None:
    base = drawn(1)
    strip = manifold(Plain(), base, 1, count=5)[:, :, 0, 0]
    assert strip.shape == (1, 5, 4)
    torch.testing.assert_close(strip[0, :, 3], torch.linspace(-2, 2, 5))
    torch.testing.assert_close(strip[0, :, :3], base[0] + 10 * torch.linspace(-2, 2, 5)[:, None])


@pytest.mark.parametrize(("rows", "dims"), [(2, (0, 1)), (1, (0, 3)), (1, (1, 1)), (1, (-1, 0))])
def test_a_manifold_refuses_what_it_cannot_lay_out(rows: int, dims: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="rows" if rows == 2 else "no pair"):
        manifold(Plain(), drawn(rows), 0, count=3, dims=dims)
