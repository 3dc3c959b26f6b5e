"""The explorer page shows what the model generates, is small, and loads nothing from elsewhere."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.evaluation import explorer
from jobs.evaluation.explorer import MAX_BYTES, PLANS, Plan, explorer_page, swap_columns, swap_images
from vlae.config import HvaeConfig, VlaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model
from vlae.traversals import infer_noise, sample_images, swap_rungs


class Noisy:
    """Model stand-in whose images no codec can compress, of any size and with any latents."""

    collapsed_kl = 0.0

    def __init__(self, dims: tuple[int, ...], shape: tuple[int, int, int], blur: int = 1) -> None:
        self.latent_dims, self.image_shape, self.blur = dims, shape, blur

    def infer_means(self, images: torch.Tensor) -> SimpleNamespace:
        zeros = [torch.zeros(len(images), dim) for dim in self.latent_dims]
        standard = [DiagonalGaussian(rung, rung) for rung in zeros]
        return SimpleNamespace(posteriors=standard, priors=standard)

    def prior(self, noise: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(noise)

    def mean_image(self, latents: list[torch.Tensor]) -> torch.Tensor:
        channels, *size = self.image_shape
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(len(latents[0]), channels, *(side // self.blur for side in size), generator=generator)
        return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def tiny(config: type[VlaeConfig | HvaeConfig] = VlaeConfig) -> HierarchicalModel:
    return build_model(config(latent_dims=(2, 3), width=4, hidden_dims=8), (3, 20, 16)).eval()


def pixels(count: int, shape: tuple[int, int, int] = (3, 20, 16)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


KL = [np.array([0.5, 2.0]), np.array([0.004, 1.0, 0.002])]


def content(page: bytes) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.DOTALL)
    assert match
    return json.loads(match[1])


def sheet(sprite: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(sprite))) as picture:
        return np.asarray(picture.convert("RGB"))


def tile(data: dict, sprite: str, index: int, columns: int) -> NDArray[np.uint8]:
    (width, height), (right, down) = data["tile"], data["pitch"]
    row, column = divmod(index, columns)
    top, left = row * down + data["margin"], column * right + data["margin"]
    return sheet(sprite)[top : top + height, left : left + width]


def drawn(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("config", [VlaeConfig, HvaeConfig])
def test_page_sprites_match_generated_images(config: type[VlaeConfig | HvaeConfig]) -> None:
    model, images = tiny(config), pixels(3)
    data = content(explorer_page(model, images, title="t", kl_dims=KL))
    noise = infer_noise(model, images)
    assert data["note"].endswith("lossless WebP.")
    assert (data["tile"], data["pitch"]) == ([16, 20], [16, 32])
    for index, image in enumerate(data["images"]):
        row = [rung[index : index + 1] for rung in noise]
        assert np.array_equal(tile(data, image["picture"], 0, 1), drawn(images[index]))
        assert np.array_equal(tile(data, image["copy"], 0, 1), drawn(sample_images(model, row)[0]))
        for latent, own, strip in zip(data["latents"], image["own"], image["strips"], strict=True):
            grid = data["grids"][latent["inactive"]]
            value = row[latent["rung"]][0, latent["dim"]].item()
            assert own == pytest.approx(value, abs=1e-4)
            for step, position in enumerate(grid):
                moved = [rung.clone() for rung in row]
                nearest = abs(position - value) == min(abs(other - value) for other in grid)
                moved[latent["rung"]][0, latent["dim"]] = value if nearest else position
                picture = tile(data, strip, step, len(grid)).astype(int)
                # One gray level of tolerance, because torch adds in another order in another batch.
                assert np.abs(picture - drawn(sample_images(model, moved)[0])).max() <= 1


def test_page_swaps_have_each_pair_once() -> None:
    model, images = tiny(), pixels(3)
    data = content(explorer_page(model, images, title="t", kl_dims=KL))
    noise = infer_noise(model, images)
    assert sorted(data["swaps"]) == ["0-1", "0-2", "1-2"]
    for pair, sprite in data["swaps"].items():
        first, second = ([rung[int(index) : int(index) + 1] for rung in noise] for index in pair.split("-"))
        for index, image in enumerate(swap_rungs(model, first, second)[0]):
            assert np.abs(tile(data, sprite, index, data["swapColumns"]).astype(int) - drawn(image)).max() <= 1


def test_page_latents_are_sorted_by_rate_inactive_last() -> None:
    data = content(explorer_page(tiny(), pixels(2), title="t", kl_dims=KL))
    assert [(each["rung"], each["dim"], each["inactive"]) for each in data["latents"]] == [
        (0, 1, False),
        (1, 1, False),
        (0, 0, False),
        (1, 0, True),
        (1, 2, True),
    ]
    assert data["rungs"] == [{"rate": 2.5, "dims": 2, "active": 2}, {"rate": 1.006, "dims": 3, "active": 1}]
    assert [len(grid) for grid in data["grids"]] == [13, 5]


def test_page_missing_metrics_become_null() -> None:
    information = np.array([[0.25, np.nan], [0.5, 1.0]])
    rates = [np.array([-0.5, np.nan]), np.array([1.0, 1.0, np.inf])]
    page = explorer_page(
        tiny(), pixels(1), title="t", kl_dims=rates, information=information, names=["a", "b"], facts={"ELBO": "-1"}
    )
    data = content(page)
    assert data["information"] == [[0.25, None], [0.5, 1.0]]
    assert [rung["rate"] for rung in data["rungs"]] == [None, None]
    assert data["facts"] == [["ELBO", "-1"]]
    assert (data["swapImages"], data["swaps"]) == (0, {})  # there is no second image


def test_page_names_are_escaped() -> None:
    evil = '</script><b onclick="x">{{data}}{{title}}&amp;<!--'
    page = explorer_page(
        tiny(), pixels(1), title=evil, kl_dims=KL, information=np.zeros((2, 1)), names=[evil], facts={evil: evil}
    ).decode()
    data = content(page.encode())
    assert data["title"] == data["names"][0] == evil
    assert data["facts"] == [[evil, evil]]
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            assert not [name for name, _ in attrs if name in ("src", "href", "srcset", "action") or name[:2] == "on"]

    Tags().feed(page)
    assert "b" not in seen
    assert seen.count("script") == 2


def test_page_loads_nothing() -> None:
    page = explorer_page(tiny(), pixels(2), title="t", kl_dims=KL).decode()
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|[\"'(]//", page)
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|localStorage|cookie|\bparent\b|window\.top", page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "shape", "blur"),
    [((16,) * 6, (3, 128, 128), 8), ((16,) * 6, (3, 128, 128), 1), ((900, 900), (3, 64, 64), 1)],
)
def test_page_any_model_is_small(dims: tuple[int, ...], shape: tuple[int, int, int], blur: int) -> None:
    model = Noisy(dims, shape, blur)
    page = explorer_page(model, pixels(8, shape), title="t", kl_dims=[np.ones(dim) for dim in dims])
    data = content(page)
    assert len(page) <= MAX_BYTES < 5_000_000
    assert len(data["images"]) >= 2
    assert len(page) > MAX_BYTES / 4  # the page shows as much as fits
    if blur > 1:
        assert (len(data["latents"]), data["tile"], len(data["swaps"])) == (96, [128, 128], 1)
    if dims[0] == 900:
        assert "1500 more latents" in data["note"]


def test_page_many_rungs_has_no_swaps_and_is_repeatable() -> None:
    model = Noisy((1,) * 11, (1, 16, 16))
    pages = [explorer_page(model, pixels(2, (1, 16, 16)), title="t", kl_dims=[np.ones(1)] * 11) for _ in range(2)]
    assert content(pages[0])["swaps"] == {}
    assert pages[0] == pages[1]


def test_page_too_large_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MAX_BYTES", 10_000)
    monkeypatch.setattr(explorer, "_MAX_LOSSLESS_BYTES", 10_000)
    with pytest.raises(ValueError, match="explorer"):
        explorer_page(tiny(), pixels(1), title="t", kl_dims=KL)


@pytest.mark.parametrize("plan", {plan.codec.name: plan for plan in PLANS}.values(), ids=lambda plan: plan.codec.name)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
def test_sprite_tiles_do_not_mix_colors(plan: Plan, channels: int, side: int) -> None:
    """Each tile keeps its color, for any color of its neighbors."""
    colors = torch.rand(6, channels, 1, 1, generator=torch.Generator().manual_seed(0))
    data = {"tile": [side, side], "pitch": [plan.pitch(side)] * 2, "margin": plan.codec.margin}
    sprite = plan.sprite(colors.expand(-1, -1, side, side), 3)
    assert sheet(sprite).shape == (2 * plan.pitch(side), 3 * plan.pitch(side), 3)
    for index, color in enumerate(colors):
        assert np.abs(tile(data, sprite, index, 3).astype(int) - drawn(color)).max() <= 16


def test_sprite_large_images_are_averaged_down() -> None:
    plan = PLANS[-1]
    image = torch.zeros(1, 1, 256, 128)
    image[..., 64:] = 1
    assert plan.tile((1, 256, 128)) == (32, 16)
    picture = sheet(plan.sprite(image, 1))
    assert picture.shape == (48, 32, 3)
    assert picture[:, :4].max() < 16
    assert picture[:, 14:].min() > 240


def test_swap_images_limits_mixtures() -> None:
    assert [swap_images(8, rungs) for rungs in (1, 3, 6, 10, 11)] == [8, 8, 6, 2, 0]
    assert swap_images(1, 3) == 0
    assert [2**rungs % swap_columns(rungs) for rungs in range(1, 11)] == [0] * 10
