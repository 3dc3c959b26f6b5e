"""The evaluate stage: metrics, plots and the explorer page of one checkpoint, computed by Ray tasks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from jobs.checkpoints.format import load_model
from jobs.cluster.ray_cluster import Resources, task_result
from jobs.data.dataset import ShardedDataset
from jobs.data.shard_reader import DataAccess
from jobs.device import autocast_bf16, to_device
from jobs.evaluation.code_metrics import compute_group, compute_metrics
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.explorer import explorer_page
from jobs.evaluation.inputs import EncodedDataset, Floats, RungFactorMatrix, encode_splits, sample
from jobs.evaluation.model_metrics import ModelMetrics, likelihood_terms, model_metrics
from jobs.evaluation.plots import draw_metrics, draw_samples
from jobs.evaluation.registry import FACTOR_COMPLEXITY, METRIC_GROUPS, MIN_IMAGES, RUNG_INFORMATION, defined_metrics
from vlae.models.base import HierarchicalModel

_MAX_CPUS = 8
_NUM_DRAWN_IMAGES = 32


@dataclass(frozen=True)
class Evaluation:
    """Finite metrics of a checkpoint by name, figures (PNG by name without `.png`) and explorer page (HTML)."""

    metrics: dict[str, float]
    figures: dict[str, bytes]
    explorer: bytes


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
    """Evaluate a checkpoint in Ray tasks.

    Args:
        checkpoint: Folder of the checkpoint, which every node can read.
        access: Access to the dataset.
        config: Settings of the evaluation.
        resources: Resources of the cluster.
        use_gpu: Whether tasks with the model use a GPU where the cluster has one.
        title: Title of the explorer page.
        siblings: Checkpoints of the same model trained with other seeds, for UDR.
        on_progress: Called with the number of completed tasks and the number of tasks.

    Returns:
        Metrics, figures and the explorer page.

    Raises:
        UserError: A checkpoint or the data is missing or damaged, or the dataset has no factor `config.label_factor`.
    """
    device = "cuda" if use_gpu and resources.num_gpus else "cpu"
    # One CPU beside a GPU, because a node with a GPU may have few CPUs, and the largest node no GPU.
    num_cpus = max(1, min(resources.node_cpus, _MAX_CPUS)) if device == "cpu" else 1

    def submit_with_model(function: Callable[..., Any], *arguments: Any) -> Any:
        # All CPUs for one task at a time, because two threads on one batch are faster than two batches of one thread.
        task = ray.remote(_with_model).options(num_cpus=num_cpus, num_gpus=int(device == "cuda"), max_retries=1)
        return task.remote(function, checkpoint, access, device, num_cpus, *arguments)

    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        return ray.remote(function).options(num_cpus=1, max_retries=1).remote(*arguments)

    encoded = submit_with_model(encode_splits, config, tuple(siblings))
    information = submit(lambda dataset: dataset.information, encoded)
    of_model = submit_with_model(model_metrics, config)
    groups = [submit(compute_group, group, encoded) for group in METRIC_GROUPS]
    drawings = submit_with_model(
        lambda model, _, *arguments: draw(model, *arguments), config, title, encoded, information, of_model
    )
    results = _wait([encoded, information, of_model, drawings, *groups], on_progress)
    figures, explorer = results[3]
    return Evaluation(merge_metrics(results[0], results[1], results[2], results[4:]), figures, explorer)


def merge_metrics(
    encoded: EncodedDataset, information: Floats, of_model: ModelMetrics, groups: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Return the finite metrics of all tasks by name, with those of the ELBO and of the rungs' `information` (L, K)."""
    matrix = RungFactorMatrix(information, of_model.complexity, encoded.names)
    results = {RUNG_INFORMATION: information, FACTOR_COMPLEXITY: of_model.complexity}
    values = compute_metrics(defined_metrics("likelihood", encoded.num_images), encoded)
    values |= compute_metrics(defined_metrics("hierarchy", encoded.num_images), matrix, results)
    for metrics in (of_model.values, *groups):
        values |= metrics
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def draw(
    model: HierarchicalModel,
    test: ShardedDataset,
    config: EvaluateConfig,
    title: str,
    encoded: EncodedDataset,
    information: Floats,
    of_model: ModelMetrics,
) -> tuple[dict[str, bytes], bytes]:
    """Return the figures (PNG by name) and the explorer page (HTML); `information` is (L, K)."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed + 2)
    pixels = to_device(sample(test, min(config.num_images, _NUM_DRAWN_IMAGES), config.seed).images, device)
    elbo = likelihood_terms(encoded.codes, encoded.dimensions, encoded.discrete)["elbo"]
    names = encoded.names if encoded.num_images >= MIN_IMAGES else []  # because information of fewer images is noise
    figures = draw_metrics(encoded.codes, information, names, of_model.gibbs)
    with autocast_bf16(device):
        figures |= draw_samples(model, pixels, generator)
        page = explorer_page(
            model,
            pixels,
            title=title,
            kl_dims=encoded.codes.mean_kl,
            information=information if names else None,
            names=names,
            facts={"test images": f"{len(encoded.factors):,}", "ELBO": f"{elbo:,.1f} nats per image"},
        )
    return figures, page


def _with_model(
    function: Callable[..., Any], checkpoint: Path, access: DataAccess, device: str, threads: int, *arguments: Any
) -> Any:
    """Load the model and both splits on the worker, and return function(model, train, test, *arguments)."""
    torch.set_num_threads(threads)
    train, test = ShardedDataset(access, "train"), ShardedDataset(access, "test")
    model = load_model(checkpoint).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return function(model, train, test, *arguments)


def _wait(tasks: Sequence[Any], on_progress: Callable[[int, int], None]) -> list[Any]:
    """Return the results in the order of the tasks; on the first failure cancel the others and raise it."""
    results: dict[Any, Any] = {}
    try:
        while len(results) < len(tasks):
            (ready, *_), _ = ray.wait([task for task in tasks if task not in results])
            results[ready] = task_result(ready)
            on_progress(len(results), len(tasks))
    except BaseException:
        for task in tasks:
            ray.cancel(task)
        raise
    return [results[task] for task in tasks]
