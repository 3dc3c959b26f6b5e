"""The measures of vlae/, applied to samples of a dataset's splits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from jobs.codes import Array, Codes
from jobs.config import EvaluateConfig
from jobs.data.order import permute
from jobs.data.split import ShardedSplit
from jobs.errors import UserError
from vlae.classifier import Classifier, accuracy, train_classifier
from vlae.features import RandomFeatures
from vlae.metrics import RungProbes, factor_complexity, probe_rungs, rung_information
from vlae.models.base import HierarchicalModel
from vlae.redundancy import GibbsCurve, gibbs_curve

_INFORMATION_IMAGES = 3000  # every one of them is compared with every other
LINEAR_IMAGES = 2000  # of each split, that the complexity of the factors is judged by
_PROBED_IMAGES = 5000  # that a probe learns from
_CLASSIFIER_IMAGES = 20_000
_SMALLEST = 16  # pixels that the fixed features need
FEWEST = 20  # images of a split that a probe or a distance makes sense for
# Factors that say what the picture is of, where `evaluate.label` names none.
LABELS = ("digit", "class", "label", "identity", "category", "shape", "object_shape")


@dataclass(frozen=True)
class Sample:
    """Some of a split, in an order that the seed makes: tars follow the source, which may be sorted by class."""

    images: Tensor  # (N, C, H, W) uint8
    factors: NDArray[np.int64]  # (N, K)
    names: list[str]  # of the factors


def sample(data: ShardedSplit, count: int, seed: int) -> Sample:
    """At most `count` images of a split, picked by the seed."""
    images, factors = data.gather(permute(np.arange(min(len(data), count)), len(data), seed))
    return Sample(images, factors, [factor.name for factor in data.manifest.factors])


def information(codes: Codes, factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each factor that each rung tells, (L, K)."""
    few = slice(_INFORMATION_IMAGES)
    rungs = zip(codes.samples, codes.centres, codes.log_sigmas, strict=True)
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
        raise UserError(f"evaluate.label={wanted} is no factor of this dataset; its factors: {known}")
    return wanted or next((label for label in LABELS if label in names), None)


def label_classifier(
    train: ShardedSplit, test: Sample, config: EvaluateConfig, device: torch.device
) -> tuple[Classifier | None, dict[str, float]]:
    """A classifier of the factor that says what a picture is of, and its accuracy; None where there is no such factor.

    Raises:
        UserError: no factor has the name of `config.label`.
    """
    name = label_name(config.label, test.names)
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
