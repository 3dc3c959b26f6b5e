"""Figures are PNGs that show every value they are given."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.evaluation.plots import bars, curve


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def blue(png: bytes) -> NDArray[np.int64]:
    """How many pixels of each row are in the first color of the plots."""
    return np.asarray((pixels(png) == (31, 119, 180)).all(-1).sum(1))


def test_bars_are_as_long_as_their_values_and_the_last_is_at_the_top() -> None:
    rows = blue(bars([8, 4, 2, 0], ["a", "b", "c", "d"], ["", "3 of 5 active", "", ""], "rate", "nats"))
    lengths = [int(part.max()) for part in np.split(rows, np.flatnonzero(np.diff(rows > 0)) + 1) if part.max() > 0]
    assert len(lengths) == 3
    assert np.array(lengths) / lengths[-1] == pytest.approx([0.25, 0.5, 1], abs=0.02)


def test_notes_are_shown() -> None:
    plain, noted = (bars([1, 2], ["a", "b"], notes, "t", "u") for notes in (["", ""], ["", "2 of 3 active"]))
    assert (pixels(noted) < 128).sum() > (pixels(plain) < 128).sum() + 50


@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), 1.0]])
def test_bars_bear_what_is_missing(values: list[float]) -> None:
    assert pixels(bars(values, ["a", "b"], ["", ""], "t", "u")).shape[1] == 640


def test_a_curve_has_its_levels_beside_it() -> None:
    first, second = (255, 127, 14), (44, 160, 44)  # the second and third color of the plots
    levels = {"ancestral": 12.0, "start": 1.0}
    shown = pixels(curve([1, 5, 20], [2, 3, 14], levels, "t", x_label="steps", y_label="distance"))
    heights = [np.flatnonzero((shown == color).all(-1).sum(1) > 200) for color in (first, second)]
    assert all(len(rows) for rows in heights)
    assert heights[0].max() < heights[1].min()  # 12 is above 1
    bare = pixels(curve([1, 5, 20], [2, 3, 14], {}, "t", x_label="steps", y_label="distance"))
    assert not (bare == first).all(-1).any()
