"""Figures are PNGs that show every value."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.evaluation.encode import Encodings
from jobs.evaluation.plots import bar_chart, draw_metrics, heat_map, line_chart, tile


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def blue(png: bytes) -> NDArray[np.int64]:
    """Return the number of pixels of each row in the first color of the plots."""
    return np.asarray((pixels(png) == (31, 119, 180)).all(-1).sum(1))


def test_bar_chart_lengths_follow_values_last_on_top() -> None:
    rows = blue(bar_chart([8, 4, 2, 0], ["a", "b", "c", "d"], ["", "3 of 5 active", "", ""], "rate", "nats"))
    runs = np.split(rows, np.flatnonzero(np.diff(rows > 0)) + 1)
    lengths = [int(run.max()) for run in runs if run.max() > 0]
    assert len(lengths) == 3
    assert np.array(lengths) / lengths[-1] == pytest.approx([0.25, 0.5, 1], abs=0.02)


def test_bar_chart_draws_notes() -> None:
    plain, noted = (bar_chart([1, 2], ["a", "b"], notes, "t", "u") for notes in (["", ""], ["", "2 of 3 active"]))
    assert (pixels(noted) < 128).sum() > (pixels(plain) < 128).sum() + 50


@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), 1.0]])
def test_bar_chart_accepts_zero_and_nan(values: list[float]) -> None:
    assert pixels(bar_chart(values, ["a", "b"], ["", ""], "t", "u")).shape[1] == 640


def test_line_chart_draws_levels_at_their_heights() -> None:
    first, second = (255, 127, 14), (44, 160, 44)  # the second and third color of the plots
    levels = {"ancestral": 12.0, "start": 1.0}
    picture = pixels(line_chart([1, 5, 20], [2, 3, 14], levels, "t", x_label="steps", y_label="distance"))
    heights = [np.flatnonzero((picture == color).all(-1).sum(1) > 200) for color in (first, second)]
    assert all(len(rows) for rows in heights)
    assert heights[0].max() < heights[1].min()  # 12 is above 1
    bare = pixels(line_chart([1, 5, 20], [2, 3, 14], {}, "t", x_label="steps", y_label="distance"))
    assert not (bare == first).all(-1).any()


def test_tile_puts_images_between_gaps() -> None:
    images = torch.arange(6).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 5) / 10
    sheet = tile(images)
    assert sheet.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    assert sheet[0].min() == 255
    assert (sheet[6:10, 13:18] == round(0.5 * 255)).all()


def test_tile_keeps_colors() -> None:
    images = torch.rand(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sheet = tile(images, gap=2)
    expected = (images[1, 2] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[8:12, 16:21], expected)


def test_heat_map_accepts_nan() -> None:
    values = np.array([[0.0, np.nan], [0.5, 1.0]])
    assert pixels(heat_map(values, ["rung 1", "rung 0"], ["a", "b"], "t")).shape[0] > 100


@pytest.mark.parametrize("count", [1, 1000])
def test_draw_metrics_long_names_fit(count: int) -> None:
    """Matplotlib refuses pictures of 65,536 pixels, and warns of labels that leave no space."""
    rung = [np.ones((5, 2), np.float32)]
    codes = Encodings(rung, rung, rung, rung, rung, np.zeros(5, np.float32), 0.0)
    figures = draw_metrics(codes, np.eye(1, count), ["W" * 100] * count, None)
    assert pixels(figures["information"]).shape[1] < 65_536
