"""The evaluate job: scores, pictures and the explorer of one checkpoint, as Ray tasks beside one another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from jobs.checkpoints.format import load_model
from jobs.cluster.ray_cluster import Resources, task_result
from jobs.config import EvaluateConfig
from jobs.data.dataset import ShardedDataset
from jobs.data.shard_reader import DataAccess
from jobs.device import autocast_bf16, to_device
from jobs.evaluation.code_metrics import METRIC_GROUPS, compute_group
from jobs.evaluation.explorer import explorer_page
from jobs.evaluation.inputs import EncodedDataset, encode_splits, information, sample
from jobs.evaluation.model_metrics import ModelMeasures, Scores, hierarchy_scores, likelihood_scores, measure_model
from jobs.evaluation.plots import draw_samples, draw_scores
from vlae.models.base import HierarchicalModel

_MOST_CPUS = 8
_DRAWN_IMAGES = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a checkpoint. Every score is finite."""

    scores: Scores
    figures: dict[str, bytes]  # name without .png -> PNG
    explorer: bytes  # HTML


def run_evaluation(
    checkpoint: Path,
    access: DataAccess,
    config: EvaluateConfig,
    resources: Resources,
    *,
    use_gpu: bool,
    title: str = "",
    siblings: Sequence[Path] = (),
    on_progress: Callable[[int, int], None],
) -> Evaluation:
    """Evaluate in Ray tasks, those that run the model on a GPU if there is one and it may be used.

    Args:
        checkpoint: its folder, seen by every node.
        access: of the dataset.
        config: what to compute, and the seed.
        resources: of the cluster.
        use_gpu: whether it may.
        title: of the explorer.
        siblings: checkpoints of the same model trained from other seeds, for UDR.
        on_progress: told how many of how many tasks have ended.

    Raises:
        UserError: a checkpoint or the data is missing or damaged, or no factor has the name of `config.label`.
    """
    device = "cuda" if use_gpu and resources.num_gpus else "cpu"
    # A node with a GPU may have few CPUs, and the largest node no GPU.
    most = max(1, min(resources.node_cpus, _MOST_CPUS)) if device == "cpu" else 1

    def on_model(function: Callable[..., Any], *arguments: Any) -> Any:
        # All CPUs to one after the other: two threads on one batch are faster than two batches of one thread.
        task = ray.remote(_with_model).options(num_cpus=most, num_gpus=int(device == "cuda"), max_retries=1)
        return task.remote(function, checkpoint, access, device, most, *arguments)

    def on_codes(function: Callable[..., Any], *arguments: Any) -> Any:
        return ray.remote(function).options(num_cpus=1, max_retries=1).remote(*arguments)

    encoded = on_model(encode_splits, config, tuple(siblings))
    told = on_codes(rung_shares, encoded)
    measured = on_model(measure_model, config)
    families = [on_codes(compute_group, family, encoded, config) for family in METRIC_GROUPS]
    drawn = on_model(_draw, config, title, encoded, told, measured)
    found = _gather([encoded, told, measured, drawn, *families], on_progress)
    return _evaluation(found[0], found[1], found[2], found[3], found[4:])


def evaluate_model(
    model: HierarchicalModel, train: ShardedDataset, test: ShardedDataset, config: EvaluateConfig
) -> Evaluation:
    """All scores and pictures, in this process.

    Args:
        model: in evaluation mode, on its device.
        train: what probes and classifier learn from.
        test: the split to score, or `config.num_images` samples of it that the seed picks.
        config: how many images, and the seed of all that is drawn.

    Raises:
        UserError: the images do not fit the model, or no factor has the name of `config.label`.
    """
    encoded = encode_splits(model, train, test, config)
    told, measured = rung_shares(encoded), measure_model(model, train, test, config)
    drawn = _draw(model, train, test, config, "", encoded, told, measured)
    return _evaluation(
        encoded, told, measured, drawn, [compute_group(family, encoded, config) for family in METRIC_GROUPS]
    )


def _evaluation(
    encoded: EncodedDataset,
    told: Floats,
    measured: ModelMeasures,
    drawn: tuple[dict[str, bytes], bytes],
    families: Sequence[Scores],
) -> Evaluation:
    """Everything under one roof."""
    figures, page = drawn
    scores = {
        **likelihood_scores(encoded.codes, encoded.dimensions, discrete=encoded.discrete),
        **hierarchy_scores(told, measured.complexity, encoded.names),
        **measured.scores,
        **{name: value for family in families for name, value in family.items()},
    }
    return Evaluation({name: float(value) for name, value in scores.items() if math.isfinite(value)}, figures, page)


def rung_shares(encoded: EncodedDataset) -> Floats:
    """Share of each factor that each rung tells, (L, K)."""
    return information(encoded.codes, encoded.factors)


def _draw(
    model: HierarchicalModel,
    train: ShardedDataset,  # noqa: ARG001  (functions of the model look alike)
    test: ShardedDataset,
    config: EvaluateConfig,
    title: str,
    encoded: EncodedDataset,
    told: Floats,
    measured: ModelMeasures,
) -> tuple[dict[str, bytes], bytes]:
    """Figures (PNG by name) and the explorer (HTML)."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed + 2)
    pixels = to_device(sample(test, min(config.num_images, _DRAWN_IMAGES), config.seed).images, device)
    elbo = likelihood_scores(encoded.codes, encoded.dimensions, discrete=encoded.discrete)["elbo"]
    figures = draw_scores(encoded.codes, told, encoded.names, measured.chains)
    with autocast_bf16(device):
        figures |= draw_samples(model, pixels, generator)
        page = explorer_page(
            model,
            pixels,
            title=title,
            kl_dims=encoded.codes.mean_kl,
            information=told if encoded.names else None,
            names=encoded.names,
            facts={"test images": f"{len(encoded.factors):,}", "ELBO": f"{elbo:,.1f} nats per image"},
        )
    return figures, page


def _with_model(
    function: Callable[..., Any], checkpoint: Path, access: DataAccess, device: str, threads: int, *arguments: Any
) -> Any:
    """A task that needs the model: function(model, train, test, *arguments)."""
    torch.set_num_threads(threads)
    train, test = ShardedDataset(access, "train"), ShardedDataset(access, "test")
    model = load_model(checkpoint).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return function(model, train, test, *arguments)


def _gather(tasks: Sequence[Any], on_progress: Callable[[int, int], None]) -> list[Any]:
    """The results in the order of the tasks; the first failure is raised at once, and the rest is called off."""
    found: dict[Any, Any] = {}
    try:
        while len(found) < len(tasks):
            (ready, *_), _ = ray.wait([task for task in tasks if task not in found])
            found[ready] = task_result(ready)
            on_progress(len(found), len(tasks))
    except BaseException:
        for task in tasks:
            ray.cancel(task)
        raise
    return [found[task] for task in tasks]
