"""Figures of a search, as PNG bytes: parallel coordinates, depth and capacity, and samples of each trial's model."""

import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
import torch
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.visualization.matplotlib import plot_parallel_coordinate

from jobs.checkpoints.format import load_model
from jobs.checkpoints.manager import CheckpointManager
from jobs.cluster.ray_cluster import task_result
from jobs.data.dataset import ShardedDataset
from jobs.data.shard_reader import DataAccess
from jobs.device import to_device
from jobs.errors import UserError
from jobs.evaluation.inputs import sample
from jobs.evaluation.plots import draw_samples, png
from jobs.search.searcher import distribution
from jobs.search.space import parse_dimension
from jobs.search.trials import Trial

_NUM_IMAGES = 32
_SEED = 2


@dataclass(frozen=True)
class TrialModel:
    """A trial whose metrics are all finite, and the number of rungs and of trained parameters of its model."""

    trial: Trial
    depth: int
    parameters: int


def parallel_coordinates(trials: Sequence[Trial], space: Mapping[str, str], objectives: Sequence[str]) -> bytes:
    """Plot a line for each of one or more trials with finite metrics; the first of `objectives` gives the color."""
    distributions: dict[str, BaseDistribution] = {
        **{key: distribution(parse_dimension(text)) for key, text in space.items()},
        **{name: FloatDistribution(-np.inf, np.inf) for name in objectives[1:]},
        "status": CategoricalDistribution(("finished", "stopped")),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        others = {name: trial.metrics[name] for name in objectives[1:]}
        params = {**trial.values, **others, "status": trial.status}
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=trial.metrics[objectives[0]])
        )
    plt.switch_backend("agg")  # because Optuna draws with pyplot, which could open a window
    with warnings.catch_warnings():
        # Optuna marks the function as experimental; Matplotlib warns of an axis on which all trials agree.
        warnings.simplefilter("ignore")
        plot_parallel_coordinate(study, target_name=objectives[0])
    figure = plt.gcf()
    figure.axes[0].set_title("Metrics on validation images and settings of the trials")
    figure.set_size_inches(6 + 1.6 * len(distributions), 5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def depth_and_capacity(models: Sequence[TrialModel], objective: str) -> bytes:
    """Return a plot of one or more trials in the plane of rungs and parameters, with the metric as color.

    Trials of equal depth are drawn a little apart, and the worst tenth share a color, so that the others differ.
    """
    heights: dict[int, float] = {}
    for depth in {model.depth for model in models}:
        numbers = sorted(model.trial.number for model in models if model.depth == depth)
        offsets = (np.arange(len(numbers)) + 0.5) / len(numbers) - 0.5
        heights |= dict(zip(numbers, depth + 0.5 * offsets, strict=True))
    values = [model.trial.metrics[objective] for model in models]
    low, high = float(np.percentile(values, 10)), max(values)
    norm = Normalize(low, high if high > low else low + 1, clip=True)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=100)
    axis = figure.subplots()
    for status, marker, label in (("finished", "o", "trained to the end"), ("stopped", "x", "stopped early")):
        group = [model for model in models if model.trial.status == status]
        if group:
            axis.scatter(
                [model.parameters for model in group],
                [heights[model.trial.number] for model in group],
                c=[model.trial.metrics[objective] for model in group],
                norm=norm,
                cmap="viridis",
                marker=marker,
                s=110,
                label=label,
            )
    for model in models:
        number = model.trial.number
        axis.annotate(str(number), (model.parameters, heights[number]), (8, -3), textcoords="offset points")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("parameters")
    axis.set_ylabel("rungs")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(min(model.depth for model in models) - 0.6, max(model.depth for model in models) + 0.8)
    axis.set_title("Depth and capacity of the trials, by number", fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="best")
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=axis, label=objective)
    return png(figure)


def draw_trials(
    checkpoints: Mapping[int, str], access: DataAccess, max_concurrent: int, *, use_gpu: bool
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield each trial's number and figures of its newest checkpoint on validation images, in the order of completion.

    `checkpoints` are addresses by the trial's number. A trial without a complete checkpoint has no PNG.
    """
    draw = ray.remote(_draw).options(num_cpus=1, num_gpus=int(use_gpu), max_retries=1)
    waiting = list(checkpoints.items())
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < max_concurrent:
            number, url = waiting.pop(0)
            running[draw.remote(url, access, "cuda" if use_gpu else "cpu")] = number
        (ready, *_), _ = ray.wait(list(running))
        yield running.pop(ready), task_result(ready)


def _draw(url: str, access: DataAccess, device: str) -> dict[str, bytes]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        checkpoint = CheckpointManager(url).latest(Path(folder))
        if checkpoint is None:
            return {}
        try:
            model = load_model(checkpoint).to(device)
        except UserError:
            return {}
    images = to_device(sample(ShardedDataset(access, "validation"), _NUM_IMAGES, _SEED).images, torch.device(device))
    return draw_samples(model, images, torch.Generator(device).manual_seed(_SEED))
