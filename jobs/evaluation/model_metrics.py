"""Metrics of the model itself: ELBO terms, effects of the rungs on images, redundancy, and the likelihood bound."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.dataset import ShardedDataset
from jobs.device import autocast_bf16, to_device
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import Sample, label_name, sample
from jobs.evaluation.registry import (
    CLASSIFIER_ACCURACY,
    GIBBS_CURVE,
    IMPORTANCE_WEIGHTED_BOUND,
    MIN_IMAGES,
    NUM_PARAMETERS,
    TOP_K_CURVE,
    TOTAL_EFFECTS,
    defined_metrics,
)
from vlae.classifier import Classifier, accuracy, train_classifier
from vlae.features import RandomFeatures
from vlae.gibbs import GibbsCurve, gibbs_curve, top_k_curve
from vlae.metrics import factor_complexity, rates
from vlae.models.base import HierarchicalModel, eval_batch_size
from vlae.objective import importance_weighted_bound
from vlae.total_effects import total_effects

_EFFECT_PAIRS = 1000
_GIBBS_IMAGES = 600  # half of them start chains
_LINEAR_IMAGES = 2000  # of each split, for the complexity of the factors
_CLASSIFIER_IMAGES = 20_000
_MIN_FEATURE_SIDE = 16  # pixels that the fixed features need

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelMetrics:
    """Metrics by name, complexity (K,) of each factor, and Gibbs distances, None for images too small or too few."""

    values: dict[str, float]
    complexity: Floats
    gibbs: GibbsCurve | None


def model_metrics(
    model: HierarchicalModel, train: ShardedDataset, test: ShardedDataset, config: EvaluateConfig
) -> ModelMetrics:
    """Return the bound, the effects of the rungs on image, color and class, and the top-k and Gibbs curves.

    Args:
        model: Model in evaluation mode, on its device.
        train: Split that the classifier is trained on.
        test: Split to evaluate.
        config: Number of images and random seed.

    Raises:
        UserError: The dataset has no factor `config.label_factor`.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed + 1)  # noise that the codes do not share
    test_images = sample(test, config.num_images, config.seed)
    num_images = min(len(train), len(test_images.images))
    pixels = to_device(test_images.images[: max(_GIBBS_IMAGES, config.iwae_images)], device)
    gibbs_pixels = pixels[:_GIBBS_IMAGES]
    classifier, classifier_accuracy = _label_classifier(train, test_images, config, device)
    with autocast_bf16(device):
        gibbs: GibbsCurve | None = None
        gibbs_result: dict[str, Any] = {}
        if min(pixels.shape[2:]) >= _MIN_FEATURE_SIDE and num_images >= MIN_IMAGES and config.gibbs_steps:
            features = RandomFeatures().to(device)
            gibbs = gibbs_curve(model, gibbs_pixels, features, steps=config.gibbs_steps, generator=generator)
            distances = dict(zip((0, *gibbs.steps), (gibbs.start, *gibbs.distances), strict=True))
            gibbs_result = {"distances": distances, "ancestral": gibbs.ancestral}
        effects = total_effects(model, _EFFECT_PAIRS, generator, classifier)
        top_k = top_k_curve(model, gibbs_pixels, generator)
    results: dict[str, Any] = {
        IMPORTANCE_WEIGHTED_BOUND: bounds(model, pixels[: config.iwae_images], config.iwae_samples, generator),
        TOTAL_EFFECTS: effects,
        TOP_K_CURVE: top_k,
        GIBBS_CURVE: gibbs_result,
        CLASSIFIER_ACCURACY: classifier_accuracy,
        NUM_PARAMETERS: model.num_parameters,
    }
    values: dict[str, float] = {}
    for metric in defined_metrics("model", num_images):
        values |= metric.compute(None, results, test_images.names)
    return ModelMetrics(values, _complexity(sample(train, _LINEAR_IMAGES, config.seed), test_images), gibbs)


def likelihood_terms(codes: Encodings, dimensions: int, discrete: bool) -> dict[str, float]:
    """Return the mean `elbo`, `reconstruction` and `kl` in nats per image, and `bits_per_dim` if `discrete` is true."""
    reconstruction, kl = float(codes.reconstruction.mean()), float(rates(codes.kl_dims).sum())
    terms = {"elbo": -(reconstruction + kl), "reconstruction": reconstruction, "kl": kl}
    if discrete:
        terms["bits_per_dim"] = (reconstruction + kl) / dimensions / math.log(2)
    return terms


def bounds(model: HierarchicalModel, images: Tensor, samples: int, generator: torch.Generator) -> dict[str, float]:
    """Return `iwae_bound` of log p(x), and `iwae_bound_of_one`, the ELBO of the same images, in nats per image.

    Images are (N, C, H, W) float32 in [0, 1] on the generator's device. Without samples or images the result is empty.
    """
    if not samples or not len(images):
        return {}
    chunks = torch.split(images, eval_batch_size(images.device))
    values = {}
    for name, count in (("iwae_bound", samples), ("iwae_bound_of_one", 1)):
        terms = torch.cat([importance_weighted_bound(model, chunk, count, generator) for chunk in chunks])
        values[name] = float(terms.mean())
    return values


def _label_classifier(
    train: ShardedDataset, test: Sample, config: EvaluateConfig, device: torch.device
) -> tuple[Classifier | None, float | None]:
    """Train a classifier of the class factor; return it with its test accuracy, or None where there are no classes."""
    name = label_name(config.label_factor, test.names)
    if name is None:
        return None, None
    column = test.names.index(name)
    train_images = sample(train, _CLASSIFIER_IMAGES, config.seed)
    labels = [torch.from_numpy(split.factors[:, column]).to(device) for split in (train_images, test)]
    if any(len(torch.unique(classes)) < 2 for classes in labels):
        return None, None
    classifier = train_classifier(
        train_images.images.to(device), labels[0], seed=config.seed, steps=config.classifier_steps
    )
    return classifier, accuracy(classifier, test.images.to(device), labels[1])


def _complexity(train: Sample, test: Sample) -> Floats:
    """Complexity of each factor (K,); NaN with fewer than 20 images in a split."""
    if min(len(train.images), len(test.images)) < MIN_IMAGES:
        return np.full(len(train.names), np.nan)
    if not train.names:
        return np.zeros(0)
    rows = slice(_LINEAR_IMAGES)
    return factor_complexity(
        train.images.numpy()[rows], train.factors[rows], test.images.numpy()[rows], test.factors[rows]
    )
