"""Scores of the model itself: what its rungs do to images, how redundant they are, how likely it finds the data."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.config import EvaluateConfig
from jobs.data.split import ShardedSplit
from jobs.device import quick, to_device
from jobs.measures import LINEAR_IMAGES, complexity, gibbs, label_classifier, sample
from jobs.scores import Scores, bound_scores, effect_scores, redundancy_scores
from vlae.effects import total_effects
from vlae.models.base import HierarchicalModel
from vlae.redundancy import GibbsCurve, top_k_curve

_EFFECT_PAIRS = 1000
_CHAIN_IMAGES = 600  # half of them start chains


@dataclass(frozen=True)
class ModelMeasures:
    """What needs the model, and not its codes of all images."""

    scores: Scores
    complexity: NDArray[np.float64]  # (K,), of the factors
    chains: GibbsCurve | None


def measure_model(
    model: HierarchicalModel, train: ShardedSplit, test: ShardedSplit, config: EvaluateConfig
) -> ModelMeasures:
    """Bounds, effects of the rungs on image, colour and class, top-k and Gibbs curves.

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
    pixels = to_device(shown.images[: max(_CHAIN_IMAGES, config.iw_images)], device)
    few = pixels[:_CHAIN_IMAGES]
    classifier, classified = label_classifier(train, shown, config, device)
    with quick(device):
        chains = gibbs(model, few, config.gibbs_steps, generator)
        effects = total_effects(model, _EFFECT_PAIRS, generator, classifier)
        top_k = top_k_curve(model, few, generator)
    scores = {
        **bound_scores(model, pixels[: config.iw_images], config.iw_samples, generator),
        **effect_scores(effects),
        **redundancy_scores(top_k, chains),
        **classified,
        "num_parameters": float(model.num_parameters),
    }
    return ModelMeasures(scores, complexity(sample(train, LINEAR_IMAGES, config.seed), shown), chains)
