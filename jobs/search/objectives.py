"""Objectives of a search, computed on validation images, which neither training nor the final evaluation uses."""

import math
from collections.abc import Collection
from dataclasses import replace

import torch

from jobs.data.dataset import ShardedDataset
from jobs.evaluation.code_metrics import compute_metrics
from jobs.evaluation.inputs import encode_sample, sample
from jobs.evaluation.registry import METRICS, TOTAL_EFFECTS
from vlae.models.base import HierarchicalModel
from vlae.total_effects import total_effects

_NUM_IMAGES = 2000
_NUM_PAIRS = 1000


def objective_metrics(
    model: HierarchicalModel, validation: ShardedDataset, objectives: Collection[str], seed: int
) -> dict[str, float]:
    """Return the objectives of a search by name, except `elbo`, which the training itself computes at each checkpoint.

    At most 2,000 images are encoded. An undefined metric is NaN, such as `mean_color_gap` of a single rung.
    """
    metrics = [metric for metric in METRICS if metric.name in objectives and metric.name != "elbo"]
    values: dict[str, float] = {metric.name: math.nan for metric in metrics}
    device = next(model.parameters()).device
    if "mean_color_gap" in values:
        effects = total_effects(model, _NUM_PAIRS, torch.Generator(device).manual_seed(seed))
        fractions = effects.mean_color_share
        values["mean_color_gap"] = fractions[0] - fractions[-1] if len(fractions) > 1 else math.nan
    metrics = [replace(metric, per_rung=False) for metric in metrics if metric.function != TOTAL_EFFECTS]
    if metrics:
        generator = torch.Generator(device).manual_seed(seed)
        encoded = encode_sample(model, sample(validation, _NUM_IMAGES, seed), generator, seed)
        values |= compute_metrics(metrics, encoded)
    return values
