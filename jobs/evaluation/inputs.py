"""The measures of vlae/, applied to samples of a dataset's splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from jobs.checkpoints.format import load_model
from jobs.config import EvaluateConfig
from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import permute
from jobs.errors import UserError
from jobs.evaluation.encode import Array, Encodings, encode, rung_codes, rung_means
from vlae.classifier import Classifier, accuracy, train_classifier
from vlae.features import RandomFeatures
from vlae.gibbs import GibbsCurve, gibbs_curve
from vlae.metrics import RungProbes, factor_complexity, probe_rungs, rung_information
from vlae.models.base import HierarchicalModel

_INFORMATION_IMAGES = 3000  # every one of them is compared with every other
LINEAR_IMAGES = 2000  # of each split, that the complexity of the factors is judged by
_PROBED_IMAGES = 5000  # that a probe learns from
_CLASSIFIER_IMAGES = 20_000
_SMALLEST = 16  # pixels that the fixed features need
FEWEST = 20  # images of a split that a probe or a distance makes sense for
# Factors that say what the picture is of, where `evaluate.label_factor` names none.
LABELS = ("digit", "class", "label", "identity", "category", "shape", "object_shape")


@dataclass(frozen=True)
class Sample:
    """Some of a split, in an order that the seed makes: tars follow the source, which may be sorted by class."""

    images: Tensor  # (N, C, H, W) uint8
    factors: NDArray[np.int64]  # (N, K)
    names: list[str]  # of the factors


def sample(data: ShardedDataset, count: int, seed: int) -> Sample:
    """At most `count` images of a split, picked by the seed."""
    images, factors = data.read(permute(np.arange(min(len(data), count)), len(data), seed))
    return Sample(images, factors, [factor.name for factor in data.manifest.factors])


def information(codes: Encodings, factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each factor that each rung tells, (L, K)."""
    few = slice(_INFORMATION_IMAGES)
    rungs = zip(codes.samples, codes.sampled_posterior_means, codes.log_sigmas, strict=True)
    with threadpool_limits(1, "blas"):  # its products are small: threads would wait for each other
        return np.stack([rung_information(z[few], mean[few], sigma[few], factors[few]) for z, mean, sigma in rungs])


def complexity(train: Sample, test: Sample) -> NDArray[np.float64]:
    """What a linear probe of the pixels leaves of each factor, (K,)."""
    if min(len(train.images), len(test.images)) < FEWEST:
        return np.full(len(train.names), np.nan)
    if not train.names:
        return np.zeros(0)
    few = slice(LINEAR_IMAGES)
    parts = (part[few] for one in (train, test) for part in (one.images.numpy(), one.factors))
    return factor_complexity(*parts)


def probes(
    train_rungs: Sequence[Array],
    train_factors: NDArray[np.int64],
    test_rungs: Sequence[Array],
    test_factors: NDArray[np.int64],
    seed: int,
) -> RungProbes | None:
    """What a probe reads from the samples of each rung, of all, and of all but one; None without factors or images."""
    if not train_factors.shape[1] or min(len(train_factors), len(test_factors)) < FEWEST:
        return None
    few = slice(_PROBED_IMAGES)
    return probe_rungs([rung[few] for rung in train_rungs], train_factors[few], test_rungs, test_factors, seed=seed)


def label_name(wanted: str, names: Sequence[str]) -> str | None:
    """The factor that says what a picture is of: `wanted`, or the first of the usual names that there is.

    Raises:
        UserError: no factor has the name `wanted`.
    """
    if wanted and wanted not in names:
        known = ", ".join(names) or "none"
        raise UserError(f"evaluate.label_factor={wanted} is no factor of this dataset; its factors: {known}")
    return wanted or next((label for label in LABELS if label in names), None)


def label_classifier(
    train: ShardedDataset, test: Sample, config: EvaluateConfig, device: torch.device
) -> tuple[Classifier | None, dict[str, float]]:
    """A classifier of the factor that says what a picture is of, and its accuracy; None where there is no such factor.

    Raises:
        UserError: no factor has the name of `config.label`.
    """
    name = label_name(config.label_factor, test.names)
    column = test.names.index(name) if name else -1
    if column < 0:
        return None, {}
    learned = sample(train, _CLASSIFIER_IMAGES, config.seed)
    if any(np.ptp(one.factors[:, column]) == 0 for one in (learned, test)):
        return None, {}
    labels = (torch.from_numpy(one.factors[:, column]).to(device) for one in (learned, test))
    known_labels, asked = labels
    classifier = train_classifier(
        learned.images.to(device), known_labels, seed=config.seed, steps=config.classifier_steps
    )
    return classifier, {"classifier_accuracy": accuracy(classifier, test.images.to(device), asked)}


def gibbs(
    model: HierarchicalModel, images: Tensor, steps: Sequence[int], generator: torch.Generator
) -> GibbsCurve | None:
    """Gibbs chains on the bottom rung, in the fixed feature space; None for images that are too small for it."""
    if min(images.shape[2:]) < _SMALLEST or len(images) < FEWEST or not steps:
        return None
    return gibbs_curve(model, images, RandomFeatures().to(images.device), steps=steps, generator=generator)


_TRAIN_IMAGES = 10_000  # that probes learn from, as many as the literature takes
_SIBLING_IMAGES = 2000  # on which models of other seeds are compared


@dataclass(frozen=True)
class EncodedDataset:
    """Codes and factors of N test and M train images; lists run over the rungs, bottom first."""

    codes: Encodings  # of the test images
    factors: NDArray[np.int64]  # (N, K)
    train_means: list[Array]  # (M, D_l)
    train_samples: list[Array]  # (M, D_l)
    train_factors: NDArray[np.int64]  # (M, K)
    names: list[str]  # of the factors
    siblings: list[Array]  # (n, D), means of the first test images in models of other seeds
    dimensions: int  # of an image
    discrete: bool  # whether p(x|z) is of 8-bit data

    @property
    def means(self) -> Array:
        """(N, D), all rungs side by side."""
        return np.concatenate(self.codes.means, axis=1)

    @property
    def all_train_means(self) -> Array:
        """(M, D), all rungs side by side."""
        return np.concatenate(self.train_means, axis=1)

    @property
    def active(self) -> NDArray[np.bool_]:
        """(D,), latents that are in use."""
        return np.concatenate(self.codes.mean_kl) > self.codes.threshold


def encode_splits(
    model: HierarchicalModel,
    train: ShardedDataset,
    test: ShardedDataset,
    config: EvaluateConfig,
    siblings: Sequence[Path] = (),
) -> EncodedDataset:
    """Encode the images that the seed picks.

    Args:
        model: in evaluation mode, on its device.
        train: what probes learn from.
        test: the split to score, or `config.num_images` samples of it.
        config: how many images, and the seed.
        siblings: checkpoints of the same model trained from other seeds.

    Raises:
        UserError: the images do not fit the model, or its ELBO is not finite on them.
    """
    if test.image_shape != model.image_shape:
        raise UserError(f"the model takes images of {model.image_shape}, the test split has {test.image_shape}")
    generator = torch.Generator(next(model.parameters()).device).manual_seed(config.seed)
    shown, learned = sample(test, config.num_images, config.seed), sample(train, _TRAIN_IMAGES, config.seed)
    codes = encode(model, shown.images, generator)
    if not codes.finite:
        raise UserError("the model's ELBO is not finite on the test split: train it anew with a smaller learning rate")
    means, samples = rung_codes(model, learned.images, generator)
    return EncodedDataset(
        codes,
        shown.factors,
        means,
        samples,
        learned.factors,
        shown.names,
        _sibling_codes(siblings, shown, generator),
        math.prod(model.image_shape),
        model.likelihood.kind != "bernoulli",
    )


def _sibling_codes(siblings: Sequence[Path], shown: Sample, generator: torch.Generator) -> list[Array]:
    """Means of the first test images in the models of other seeds; one that is gone by now is left out."""
    found = []
    for checkpoint in siblings:
        try:
            other = load_model(checkpoint)
        except UserError:
            continue
        found.append(np.concatenate(rung_means(other.to(generator.device), shown.images[:_SIBLING_IMAGES]), axis=1))
    return found
