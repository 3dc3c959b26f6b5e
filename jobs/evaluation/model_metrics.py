"""Scores of the model itself: what its rungs do to images, how redundant they are, how likely it finds the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.config import EvaluateConfig
from jobs.data.dataset import ShardedDataset
from jobs.device import autocast_bf16, to_device
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import LINEAR_IMAGES, complexity, gibbs, label_classifier, sample
from vlae.gibbs import GibbsCurve, top_k_curve
from vlae.metrics import (
    RungProbes,
    active_units,
    complexity_correlation,
    level_centroids,
    rates,
    rung_compactness,
    rung_modularity,
)
from vlae.models.base import HierarchicalModel, eval_batch_size
from vlae.objective import importance_weighted_bound
from vlae.total_effects import Effects, total_effects

Scores = dict[str, float]
Floats = NDArray[np.float64]


def likelihood_scores(codes: Encodings, dimensions: int, *, discrete: bool) -> Scores:
    """ELBO and its terms in nats per image, what each rung carries, and bits/dim where p(x|z) is of 8-bit data."""
    per_rung, active = rates(codes.kl_dims), active_units(codes.kl_dims, threshold=codes.threshold)
    reconstruction, kl = float(codes.reconstruction.mean()), float(per_rung.sum())
    scores = {"elbo": -(reconstruction + kl), "reconstruction": reconstruction, "kl": kl}
    if discrete:
        scores["bits_per_dim"] = (reconstruction + kl) / dimensions / math.log(2)
    for rung, rate in enumerate(per_rung):
        scores |= {f"kl/rung_{rung}": float(rate), f"active_units/rung_{rung}": float(active[rung])}
    return scores


def bound_scores(model: HierarchicalModel, images: Tensor, samples: int, generator: torch.Generator) -> Scores:
    """Importance-weighted bound of log p(x) and the ELBO of the same images, nats per image.

    Args:
        model: any.
        images: (N, C, H, W) float32 in [0, 1]; none, or no samples: no score.
        samples: importance samples for each.
        generator: of the posterior's noise.
    """
    if not samples or not len(images):
        return {}
    chunks = torch.split(images, eval_batch_size(images.device))
    found = {
        name: torch.cat([importance_weighted_bound(model, chunk, count, generator) for chunk in chunks])
        for name, count in (("iwae_bound", samples), ("iw_bound_of_one", 1))
    }
    return {name: float(values.mean()) for name, values in found.items()}


def hierarchy_scores(information: Floats, complexity: Floats, names: Sequence[str]) -> Scores:
    """Which rung tells which factor, and whether their order is that of the factors' complexity.

    Args:
        information: (L, K), shares I(z_l; v_k) / H(v_k).
        complexity: (K,), what a linear probe of the pixels leaves.
        names: of the factors.
    """
    if not names:
        return {}
    centroids = level_centroids(information)
    return {
        **by_rung("information", information, names),
        **{f"centroid/{name}": float(centroids[column]) for column, name in enumerate(names)},
        **{f"complexity/{name}": float(complexity[column]) for column, name in enumerate(names)},
        "rung_modularity": rung_modularity(information),
        "rung_compactness": rung_compactness(information),
        "centroid_complexity_spearman": complexity_correlation(centroids, complexity),
    }


def probe_scores(probes: RungProbes | None, names: Sequence[str]) -> Scores:
    """Chance-corrected accuracy of a probe on each rung, and what is lost without it."""
    if probes is None:
        return {}
    return {
        **by_rung("probe", probes.alone, names),
        **by_rung("unique", probes.unique_information, names),
        **{f"probe/all/{name}": float(probes.whole[column]) for column, name in enumerate(names)},
        "upper_rung_gain": probes.upper_rung_gain,
    }


def by_rung(name: str, values: Floats, columns: Sequence[str]) -> Scores:
    """A matrix (L, K) as `name/rung_0/factor`."""
    return {
        f"{name}/rung_{rung}/{column}": float(values[rung, place])
        for rung in range(len(values))
        for place, column in enumerate(columns)
    }


def effect_scores(effects: Effects) -> Scores:
    """Total effect of each rung on the image, its mean color and its class; its color share and class-flip rate."""
    spaces = {
        "effect": effects.pixels,
        "color_effect": effects.color,
        "mean_color_share": effects.mean_color_share,
        "class_effect": effects.classifier,
        "class_flip_rate": effects.flip_rate,
    }
    return {
        f"{name}/rung_{rung}": value
        for name, values in spaces.items()
        if values is not None
        for rung, value in enumerate(values)
    }


def redundancy_scores(top_k: Floats, gibbs: GibbsCurve | None) -> Scores:
    """Squared error with the top k rungs; Frechet distances of Gibbs chains and of ancestral samples."""
    scores = {f"top_k_mse/{kept}": float(error) for kept, error in enumerate(top_k)}
    if gibbs is not None:
        scores |= {
            f"gibbs_distance/step_{step}": distance for step, distance in zip(gibbs.steps, gibbs.distances, strict=True)
        }
        scores |= {"gibbs_distance/step_0": gibbs.start, "gibbs_distance/ancestral": gibbs.ancestral}
    return scores


_EFFECT_PAIRS = 1000
_CHAIN_IMAGES = 600  # half of them start chains


@dataclass(frozen=True)
class ModelMeasures:
    """What needs the model, and not its codes of all images."""

    scores: Scores
    complexity: NDArray[np.float64]  # (K,), of the factors
    chains: GibbsCurve | None


def measure_model(
    model: HierarchicalModel, train: ShardedDataset, test: ShardedDataset, config: EvaluateConfig
) -> ModelMeasures:
    """Bounds, effects of the rungs on image, color and class, top-k and Gibbs curves.

    Args:
        model: in evaluation mode, on its device.
        train: what the classifier learns from.
        test: where images come from.
        config: how many images, and the seed.

    Raises:
        UserError: no factor has the name of `config.label`.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed + 1)  # other noise than that of the codes
    shown = sample(test, config.num_images, config.seed)
    pixels = to_device(shown.images[: max(_CHAIN_IMAGES, config.iwae_images)], device)
    few = pixels[:_CHAIN_IMAGES]
    classifier, classified = label_classifier(train, shown, config, device)
    with autocast_bf16(device):
        chains = gibbs(model, few, config.gibbs_steps, generator)
        effects = total_effects(model, _EFFECT_PAIRS, generator, classifier)
        top_k = top_k_curve(model, few, generator)
    scores = {
        **bound_scores(model, pixels[: config.iwae_images], config.iwae_samples, generator),
        **effect_scores(effects),
        **redundancy_scores(top_k, chains),
        **classified,
        "num_parameters": float(model.num_parameters),
    }
    return ModelMeasures(scores, complexity(sample(train, LINEAR_IMAGES, config.seed), shown), chains)
