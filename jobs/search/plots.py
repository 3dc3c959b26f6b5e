"""Pictures of a search, as PNG bytes: its settings as parallel coordinates, and depth against capacity."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from jobs.checkpoints.format import load_model
from jobs.checkpoints.manager import Checkpoints
from jobs.cluster.ray_cluster import task_result
from jobs.data.dataset import ShardedDataset
from jobs.data.shard_reader import DataAccess
from jobs.device import to_device
from jobs.errors import UserError
from jobs.evaluation.inputs import sample
from jobs.evaluation.plots import draw_samples, png
from jobs.search.trials import Status

_COLORS = "viridis"
_MARKERS: dict[Status, str] = {"finished": "o", "stopped": "x"}


@dataclass(frozen=True)
class Drawn:
    """A trial as the pictures show it."""

    number: int
    status: Status
    depth: int  # rungs
    parameters: int
    values: dict[str, str]  # of the settings that are searched
    scores: dict[str, float]  # by objective, all finite


def parallel_coordinates(trials: Sequence[Drawn], objectives: Sequence[str]) -> bytes:
    """A line for each trial through its settings and its scores; those stopped early are dashed.

    Args:
        trials: one or more.
        objectives: the first gives the color.
    """
    settings = list(trials[0].values)
    columns = [[trial.values[name] for trial in trials] for name in settings]
    columns += [[repr(trial.scores[name]) for trial in trials] for name in objectives]
    names = [*(name.rpartition(".")[2] for name in settings), *objectives]
    figure = Figure(figsize=(2.2 + 1.7 * len(names), 4.6), layout="constrained", dpi=100)
    axis = figure.subplots()
    heights = np.stack([_heights(axis, place, column) for place, column in enumerate(columns)], axis=1)
    shades = _shades(trials, objectives[0])
    rgba = shades.to_rgba(np.array([trial.scores[objectives[0]] for trial in trials]))
    colors = {trial.number: color for trial, color in zip(trials, rgba, strict=True)}
    for trial, line in zip(trials, heights, strict=True):
        style = "-" if trial.status == "finished" else "--"
        axis.plot(range(len(names)), line, style, color=colors[trial.number], lw=1.8)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks([])
    axis.set_xlim(-0.35, len(names) - 0.5)
    axis.spines[:].set_visible(False)
    axis.set_title("Trials: settings and scores on validation images (dashed: stopped early)", fontsize=11)
    figure.colorbar(shades, ax=axis, label=objectives[0], fraction=0.05)
    return png(figure)


def _heights(axis: Axes, place: int, column: Sequence[str]) -> NDArray[np.float64]:
    """Draw one upright axis with its marks; where on it, 0 to 1, each value lies."""
    numbers = _numbers(column)
    if numbers is None:
        words = sorted(set(column), key=lambda text: (text.count(","), text))
        where = {text: (rank + 0.5) / len(words) for rank, text in enumerate(words)}
        ticks = [(where[text], text) for text in words]
        heights = np.array([where[text] for text in column])
    else:
        few = sorted(set(numbers))
        log = few[0] > 0 and few[-1] > 20 * few[0]
        scaled = np.log(numbers) if log else np.array(numbers)
        low, span = scaled.min(), np.ptp(scaled) or 1.0
        heights = (scaled - low) / span
        marks = np.log(few) if log else np.array(few)
        if len(few) > 6 or (len(few) > 1 and np.diff(marks).min() < 0.06 * span):  # marks would overlap
            marks = np.linspace(marks[0], marks[-1], 5)
        ticks = [((one - low) / span, _short(math.exp(one) if log else one)) for one in marks.tolist()]
    axis.axvline(place, color="0.6", lw=1, zorder=0)
    for height, text in ticks:
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
        axis.text(place - 0.03, height, text, ha="right", va="center", fontsize=8, bbox=box, zorder=3)
    return heights


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _numbers(column: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in column]
    except ValueError:
        return None


def depth_and_capacity(trials: Sequence[Drawn], objective: str) -> bytes:
    """Where in the plane of rungs and parameters each trial lies, colored by its score and named by its number.

    Args:
        trials: one or more; those of equal depth lie a little apart.
        objective: gives the color.
    """
    alike = {depth: [one.number for one in trials if one.depth == depth] for depth in {one.depth for one in trials}}
    heights = {
        number: depth + 0.5 * ((place + 0.5) / len(numbers) - 0.5)
        for depth, numbers in alike.items()
        for place, number in enumerate(sorted(numbers))
    }
    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=100)
    axis = figure.subplots()
    shades = _shades(trials, objective)
    for status, marker in _MARKERS.items():
        shown = [trial for trial in trials if trial.status == status]
        if shown:
            axis.scatter(
                [trial.parameters for trial in shown],
                [heights[trial.number] for trial in shown],
                c=[trial.scores[objective] for trial in shown],
                norm=_range(trials, objective),
                cmap=_COLORS,
                marker=marker,
                s=110,
                label={"finished": "trained to the end", "stopped": "stopped early"}[status],
            )
    for trial in trials:
        axis.annotate(str(trial.number), (trial.parameters, heights[trial.number]), (8, -3), textcoords="offset points")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("parameters")
    axis.set_ylabel("rungs")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(min(trial.depth for trial in trials) - 0.6, max(trial.depth for trial in trials) + 0.8)
    axis.set_title("Depth and capacity of the trials, by number", fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="best")
    figure.colorbar(shades, ax=axis, label=objective)
    return png(figure)


def _shades(trials: Sequence[Drawn], objective: str) -> ScalarMappable:
    return ScalarMappable(_range(trials, objective), _COLORS)


def _range(trials: Sequence[Drawn], objective: str) -> Normalize:
    """Of the scores; the poorest of many do not take the colors of the others."""
    scores = [trial.scores[objective] for trial in trials]
    low, high = float(np.percentile(scores, 10)), max(scores)
    return Normalize(low, high if high > low else low + 1, clip=True)


_IMAGES = 32
_SEED = 2


def draw_trials(
    places: Mapping[int, str], access: DataAccess, at_once: int, *, use_gpu: bool
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Draw what the newest checkpoint of each trial makes, as the evaluation does, of validation images.

    Args:
        places: of the checkpoints, by the trial's number.
        access: of the dataset.
        at_once: tasks that are under way together.
        use_gpu: whether each takes one.

    Yields:
        Number and PNGs by name, as they are ready; no PNG where there is no whole checkpoint.
    """
    draw = ray.remote(_draw).options(num_cpus=1, num_gpus=int(use_gpu), max_retries=1)
    waiting = list(places.items())
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, place = waiting.pop(0)
            running[draw.remote(place, access, "cuda" if use_gpu else "cpu")] = number
        (ready, *_), _ = ray.wait(list(running))
        yield running.pop(ready), task_result(ready)


def _draw(place: str, access: DataAccess, device: str) -> dict[str, bytes]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        checkpoint = Checkpoints(place).newest(Path(folder))
        if checkpoint is None:
            return {}
        try:
            model = load_model(checkpoint).to(device)
        except UserError:
            return {}
    images = to_device(sample(ShardedDataset(access, "validation"), _IMAGES, _SEED).images, torch.device(device))
    return draw_samples(model, images, torch.Generator(device).manual_seed(_SEED))
