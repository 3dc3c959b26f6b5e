"""The explorer page: what is in it is what the model shows, it is small, and nothing of it comes from elsewhere."""

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
from jobs.evaluation.explorer import MOST_BYTES, PLANS, Plan, explorer_page, swap_columns, swap_images
from vlae.config import HvaeConfig, VlaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model
from vlae.traversals import image_noise, rung_swaps, sample_images


class Noisy:
    """A stand-in whose images no codec can make small, of any size and with any latents."""

    collapsed_kl = 0.0

    def __init__(self, dims: tuple[int, ...], shape: tuple[int, int, int], blur: int = 1) -> None:
        self.latent_dims, self.image_shape, self.blur = dims, shape, blur

    def infer_means(self, images: torch.Tensor) -> SimpleNamespace:
        zeros = [torch.zeros(len(images), dim) for dim in self.latent_dims]
        standard = [DiagonalGaussian(part, part) for part in zeros]
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
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.DOTALL)
    assert found
    return json.loads(found[1])


def sheet(sprite: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(sprite))) as picture:
        return np.asarray(picture.convert("RGB"))


def tile(data: dict, sprite: str, number: int, columns: int) -> NDArray[np.uint8]:
    (width, height), (right, down) = data["tile"], data["pitch"]
    row, column = divmod(number, columns)
    top, left = row * down + data["margin"], column * right + data["margin"]
    return sheet(sprite)[top : top + height, left : left + width]


def drawn(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("config", [VlaeConfig, HvaeConfig])
def test_sprites_are_what_the_model_shows(config: type[VlaeConfig | HvaeConfig]) -> None:
    model, images = tiny(config), pixels(3)
    data = content(explorer_page(model, images, title="t", kl_dims=KL))
    noise = image_noise(model, images)
    assert data["note"].endswith("lossless WebP.")
    assert (data["tile"], data["pitch"]) == ([16, 20], [16, 32])
    for number, image in enumerate(data["images"]):
        one = [part[number : number + 1] for part in noise]
        assert np.array_equal(tile(data, image["picture"], 0, 1), drawn(images[number]))
        assert np.array_equal(tile(data, image["copy"], 0, 1), drawn(sample_images(model, one)[0]))
        for latent, own, strip in zip(data["latents"], image["own"], image["strips"], strict=True):
            grid = data["grids"][latent["quiet"]]
            value = one[latent["rung"]][0, latent["dim"]].item()
            assert own == pytest.approx(value, abs=1e-4)
            for step, place in enumerate(grid):
                moved = [part.clone() for part in one]
                nearest = abs(place - value) == min(abs(other - value) for other in grid)
                moved[latent["rung"]][0, latent["dim"]] = value if nearest else place
                shown = tile(data, strip, step, len(grid)).astype(int)
                assert np.abs(shown - drawn(sample_images(model, moved)[0])).max() <= 1  # sums in another order


def test_swaps_of_each_pair_are_there_once() -> None:
    model, images = tiny(), pixels(3)
    data = content(explorer_page(model, images, title="t", kl_dims=KL))
    noise = image_noise(model, images)
    assert sorted(data["swaps"]) == ["0-1", "0-2", "1-2"]
    for pair, sprite in data["swaps"].items():
        first, second = ([part[int(at) : int(at) + 1] for part in noise] for at in pair.split("-"))
        for number, image in enumerate(rung_swaps(model, first, second)[0]):
            assert np.abs(tile(data, sprite, number, data["swapColumns"]).astype(int) - drawn(image)).max() <= 1


def test_latents_are_sorted_by_rate_and_the_inactive_come_last() -> None:
    data = content(explorer_page(tiny(), pixels(2), title="t", kl_dims=KL))
    assert [(each["rung"], each["dim"], each["quiet"]) for each in data["latents"]] == [
        (0, 1, False),
        (1, 1, False),
        (0, 0, False),
        (1, 0, True),
        (1, 2, True),
    ]
    assert data["rungs"] == [{"rate": 2.5, "dims": 2, "active": 2}, {"rate": 1.006, "dims": 3, "active": 1}]
    assert [len(grid) for grid in data["grids"]] == [13, 5]


def test_scores_with_gaps() -> None:
    information = np.array([[0.25, np.nan], [0.5, 1.0]])
    rates = [np.array([-0.5, np.nan]), np.array([1.0, 1.0, np.inf])]
    page = explorer_page(
        tiny(), pixels(1), title="t", kl_dims=rates, information=information, names=["a", "b"], facts={"ELBO": "-1"}
    )
    data = content(page)
    assert data["information"] == [[0.25, None], [0.5, 1.0]]
    assert [rung["rate"] for rung in data["rungs"]] == [None, None]
    assert data["facts"] == [["ELBO", "-1"]]
    assert (data["swapImages"], data["swaps"]) == (0, {})  # one image has none to swap with


def test_names_cannot_break_out() -> None:
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


def test_nothing_comes_from_elsewhere() -> None:
    page = explorer_page(tiny(), pixels(2), title="t", kl_dims=KL).decode()
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|[\"'(]//", page)
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|localStorage|cookie|\bparent\b|window\.top", page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "shape", "blur"),
    [((16,) * 6, (3, 128, 128), 8), ((16,) * 6, (3, 128, 128), 1), ((900, 900), (3, 64, 64), 1)],
)
def test_a_page_is_small_whatever_the_model(dims: tuple[int, ...], shape: tuple[int, int, int], blur: int) -> None:
    model = Noisy(dims, shape, blur)
    page = explorer_page(model, pixels(8, shape), title="t", kl_dims=[np.ones(dim) for dim in dims])
    data = content(page)
    assert len(page) <= MOST_BYTES < 5_000_000
    assert len(data["images"]) >= 2
    assert len(page) > MOST_BYTES / 4  # what fits is shown
    if blur > 1:
        assert (len(data["latents"]), data["tile"], len(data["swaps"])) == (96, [128, 128], 1)
    if dims[0] == 900:
        assert "1500 more latents" in data["note"]


def test_many_rungs_have_no_swaps_and_the_same_model_the_same_page() -> None:
    model = Noisy((1,) * 11, (1, 16, 16))
    pages = [explorer_page(model, pixels(2, (1, 16, 16)), title="t", kl_dims=[np.ones(1)] * 11) for _ in range(2)]
    assert content(pages[0])["swaps"] == {}
    assert pages[0] == pages[1]


def test_a_page_that_cannot_be_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MOST_BYTES", 10_000)
    monkeypatch.setattr(explorer, "_LOSSLESS_BYTES", 10_000)
    with pytest.raises(ValueError, match="no page of 10,000 bytes"):
        explorer_page(tiny(), pixels(1), title="t", kl_dims=KL)


@pytest.mark.parametrize("plan", {plan.codec.name: plan for plan in PLANS}.values(), ids=lambda plan: plan.codec.name)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
def test_tiles_do_not_bleed_into_each_other(plan: Plan, channels: int, side: int) -> None:
    """Each is of one color, whatever stands beside it."""
    colors = torch.rand(6, channels, 1, 1, generator=torch.Generator().manual_seed(0))
    data = {"tile": [side, side], "pitch": [plan.pitch(side)] * 2, "margin": plan.codec.margin}
    sprite = plan.sprite(colors.expand(-1, -1, side, side), 3)
    assert sheet(sprite).shape == (2 * plan.pitch(side), 3 * plan.pitch(side), 3)
    for number, color in enumerate(colors):
        assert np.abs(tile(data, sprite, number, 3).astype(int) - drawn(color)).max() <= 16


def test_large_images_are_averaged_down() -> None:
    plan = PLANS[-1]
    image = torch.zeros(1, 1, 256, 128)
    image[..., 64:] = 1
    assert plan.tile((1, 256, 128)) == (32, 16)
    shown = sheet(plan.sprite(image, 1))
    assert shown.shape == (48, 32, 3)
    assert (shown[:, :4].max() < 16, shown[:, 14:].min() > 240) == (True, True)


def test_swaps_are_limited_in_number() -> None:
    assert [swap_images(8, rungs) for rungs in (1, 3, 6, 10, 11)] == [8, 8, 6, 2, 0]
    assert swap_images(1, 3) == 0
    assert [2**rungs % swap_columns(rungs) for rungs in range(1, 11)] == [0] * 10
