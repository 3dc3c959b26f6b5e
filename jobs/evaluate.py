"""The evaluate job: scores and pictures of one checkpoint on the test split, as a Ray task."""

import math
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from jobs.checkpoint import load_model
from jobs.cluster import Resources, task_result
from jobs.codes import draw_codes, encode
from jobs.config import EvaluateConfig
from jobs.data.shard_files import DataAccess
from jobs.data.split import ShardedSplit
from jobs.device import to_device
from jobs.errors import UserError
from jobs.measures import complexity, gibbs, information, label_classifier, probes, sample
from jobs.pictures import draw_samples, draw_scores
from jobs.scores import (
    Scores,
    bound_scores,
    effect_scores,
    factor_scores,
    hierarchy_scores,
    likelihood_scores,
    probe_scores,
    redundancy_scores,
)
from vlae.effects import total_effects
from vlae.models.base import HierarchicalModel
from vlae.redundancy import top_k_curve

_TRAIN_IMAGES = 5000  # that probes learn from
_EFFECT_PAIRS = 1000
_CHAIN_IMAGES = 1000  # half of them start chains
_MOST_CPUS = 8


@dataclass(frozen=True)
class Evaluation:
    """What is known of a checkpoint. Every score is finite."""

    scores: Scores
    figures: dict[str, bytes]  # name without .png -> PNG


def run_evaluation(
    checkpoint: Path, access: DataAccess, config: EvaluateConfig, resources: Resources, *, use_gpu: bool
) -> Evaluation:
    """Evaluate in a Ray task, on a GPU if there is one and it may be used.

    Raises:
        UserError: the checkpoint or the data is missing or damaged, or no factor has the name of `config.label`.
    """
    device = "cuda" if use_gpu and resources.num_gpus else "cpu"
    # A node with a GPU may have few CPUs, and the largest node no GPU.
    cpus = max(1, min(resources.node_cpus, _MOST_CPUS)) if device == "cpu" else 1
    task = ray.remote(_evaluate_task).options(num_cpus=cpus, num_gpus=int(device == "cuda"), max_retries=1)
    result: Evaluation = task_result(task.remote(checkpoint, access, config, cpus, device))
    return result


def _evaluate_task(
    checkpoint: Path, access: DataAccess, config: EvaluateConfig, num_threads: int, device: str
) -> Evaluation:
    torch.set_num_threads(num_threads)
    train, test = ShardedSplit(access, "train"), ShardedSplit(access, "test")
    model = load_model(checkpoint).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return evaluate_model(model, train, test, config)


def evaluate_model(
    model: HierarchicalModel, train: ShardedSplit, test: ShardedSplit, config: EvaluateConfig
) -> Evaluation:
    """All scores and pictures.

    Args:
        model: in evaluation mode, on its device.
        train: what probes and classifier learn from.
        test: the split to score, or `config.num_images` samples of it that the seed picks.
        config: how many images, and the seed of all that is drawn.

    Raises:
        UserError: the images do not fit the model, or no factor has the name of `config.label`.
    """
    if test.image_shape != model.image_shape:
        raise UserError(f"the model takes images of {model.image_shape}, the test split has {test.image_shape}")
    device, seed = next(model.parameters()).device, config.seed
    generator = torch.Generator(device).manual_seed(seed)
    shown, learned = sample(test, config.num_images, seed), sample(train, _TRAIN_IMAGES, seed)
    codes, names = encode(model, shown.images, generator), shown.names
    if not codes.finite:
        raise UserError("the model's ELBO is not finite on the test split: train it anew with a smaller learning rate")
    pixels = to_device(shown.images[: max(_CHAIN_IMAGES, config.iw_images)], device)
    few = pixels[:_CHAIN_IMAGES]
    told, chains = information(codes, shown.factors), gibbs(model, few, config.gibbs_steps, generator)
    classifier, classified = label_classifier(train, shown, config, device)
    scores = {
        **likelihood_scores(codes, math.prod(model.image_shape), discrete=model.likelihood.kind != "bernoulli"),
        **bound_scores(model, pixels[: config.iw_images], config.iw_samples, generator),
        **factor_scores(codes, shown.factors),
        **hierarchy_scores(told, complexity(learned, shown), names),
        **probe_scores(
            probes(draw_codes(model, learned.images, generator), learned, codes.samples, shown, seed), names
        ),
        **effect_scores(total_effects(model, _EFFECT_PAIRS, generator, classifier)),
        **redundancy_scores(top_k_curve(model, few, generator), chains),
        **classified,
        "num_parameters": model.num_parameters,
    }
    figures = draw_samples(model, pixels[:32], generator) | draw_scores(codes, told, names, chains)
    return Evaluation({name: float(value) for name, value in scores.items() if math.isfinite(value)}, figures)
