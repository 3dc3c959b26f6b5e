"""Pictures of a search show every trial where its settings and scores are."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.search.plots import Drawn, depth_and_capacity, parallel_coordinates

BEST, WORST = (253, 231, 36), (68, 1, 84)  # the ends of viridis


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def center(shown: NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[float, float]:
    """Row and column of the middle of what has a color, left of the color bar."""
    near = (np.abs(shown[:, : int(shown.shape[1] * 0.8)].astype(int) - color).sum(-1) < 12).nonzero()
    assert len(near[0]) > 20
    return float(near[0].mean()), float(near[1].mean())


def drawn(number: int, score: float, depth: int = 1, parameters: int = 1000, **values: str) -> Drawn:
    return Drawn(number, "finished", depth, parameters, values or {"seed": str(number)}, {"elbo": score})


def test_deeper_is_higher_and_larger_is_further_right() -> None:
    shown = pixels(depth_and_capacity([drawn(0, 1.0, 3, 10_000), drawn(1, 0.0, 1, 1_000)], "elbo"))
    (high, right), (low, left) = center(shown, BEST), center(shown, WORST)
    assert high < low - 50
    assert right > left + 100


def test_lines_go_from_the_setting_to_the_score() -> None:
    trials = [drawn(0, 0.0, rate="0.01"), drawn(1, 1.0, rate="0.0001"), drawn(2, 0.5, rate="0.001")]
    shown = pixels(parallel_coordinates(trials, ["elbo"]))
    where = (np.abs(shown.astype(int) - BEST).sum(-1) < 12)[:, : int(shown.shape[1] * 0.7)]
    rows, columns = where.nonzero()
    first, last = rows[columns == columns.min()].mean(), rows[columns == columns.max()].mean()
    assert first > last + 100  # the lowest rate, the highest score


@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_trials_and_equal_scores(count: int) -> None:
    trials = [
        Drawn(n, "stopped", 1, 10, {"a": "x", "b": "3", "c": "true"}, {"elbo": 1.0, "mig": 0.0}) for n in range(count)
    ]
    assert pixels(parallel_coordinates(trials, ["elbo", "mig"])).shape[1] > 600
    assert pixels(depth_and_capacity(trials, "mig")).shape[1] > 600
