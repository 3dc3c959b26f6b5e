"""Figures of a search show each trial at its settings and metrics."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.search.plots import TrialModel, depth_and_capacity, parallel_coordinates
from jobs.search.space import Value
from jobs.search.trials import Trial

BEST, WORST = (253, 231, 36), (68, 1, 84)  # the ends of viridis
DARK = (8, 48, 107)  # the best end of Blues


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def center(image: NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[float, float]:
    """Mean row and column of the pixels of a color, left of the color bar."""
    near = (np.abs(image[:, : int(image.shape[1] * 0.8)].astype(int) - color).sum(-1) < 12).nonzero()
    assert len(near[0]) > 20
    return float(near[0].mean()), float(near[1].mean())


def trial(number: int, elbo: float, **values: Value) -> Trial:
    return Trial(number, values or {"seed": number}, "finished", reports=[(1, {"elbo": elbo})])


def test_depth_and_capacity_orders_axes() -> None:
    """A deeper model is higher and a larger one further right."""
    models = [TrialModel(trial(0, 1.0), 3, 10_000), TrialModel(trial(1, 0.0), 1, 1_000)]
    image = pixels(depth_and_capacity(models, "elbo"))
    (high, right), (low, left) = center(image, BEST), center(image, WORST)
    assert high < low - 50
    assert right > left + 100


def test_parallel_coordinates_join_metric_and_setting() -> None:
    """The line of the best trial goes from the highest ELBO to the lowest learning rate."""
    trials = [trial(0, 0.0, rate=0.01), trial(1, 1.0, rate=0.0001), trial(2, 0.5, rate=0.001)]
    image = pixels(parallel_coordinates(trials, {"rate": "log:1e-5..1.0"}, ["elbo"]))
    near = (np.abs(image.astype(int) - DARK).sum(-1) < 12)[:, : int(image.shape[1] * 0.7)]
    rows, columns = near.nonzero()
    first, last = rows[columns == columns.min()].mean(), rows[columns == columns.min() + 200].mean()
    assert last > first + 100


def test_plots_draw_equal_metrics() -> None:
    """Any number of trials with equal metrics and settings can be drawn, a little apart."""
    values: dict[str, Value] = {"a": "x", "b": 3, "c": "true"}
    space = {"a": "x/y", "b": "1..5", "c": "true/false"}
    heights = []
    for count in (1, 9):
        trials = [Trial(n, values, "stopped", reports=[(1, {"elbo": 1.0, "mig": 0.0})]) for n in range(count)]
        assert pixels(parallel_coordinates(trials, space, ["elbo", "mig"])).shape[1] > 600
        image = pixels(depth_and_capacity([TrialModel(trial, 1, 10) for trial in trials], "mig"))[:, :576]
        markers = np.abs(image.astype(int) - WORST).sum(-1) < 12
        column = markers.sum(0).argmax()  # of the markers, and not of the legend
        heights.append(np.ptp(markers[:, column - 4 : column + 4].any(1).nonzero()[0]))
    assert 0 < heights[0] < heights[1] - 50


def test_depth_and_capacity_outlier_does_not_hide_the_others() -> None:
    """The worst tenth of the trials share a color, and of the others only the best has the brightest."""
    models = [TrialModel(trial(n, -1e6 if n == 0 else float(n)), 1, 1000 * 2 ** (10 - n)) for n in range(11)]
    image = pixels(depth_and_capacity(models, "elbo"))[:, :576].astype(int)
    best, worst = ((np.abs(image - color).sum(-1) < 12).sum() for color in (BEST, WORST))
    assert worst > 1.5 * best > 0
