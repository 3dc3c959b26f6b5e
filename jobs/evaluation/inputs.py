"""Inputs of the metrics: images, codes and factors of a dataset's splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from jobs.checkpoints.format import load_model
from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import permute
from jobs.errors import UserError
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.encode import Array, Encodings, encode, means_and_samples, rung_means
from vlae.metrics import factor_centroids, rung_information
from vlae.models.base import HierarchicalModel

_INFORMATION_IMAGES = 3000  # because every image is compared with every other
_TRAIN_IMAGES = 10_000  # train images of the classifiers, as in the literature
_TEST_IMAGES = 5000  # test images of the classifiers, as in the literature
_PROBE_IMAGES = 5000  # train images of a probe
_SIBLING_IMAGES = 2000  # on which models of other seeds are compared
# Factors that name the class of an image, where `evaluate.label_factor` is empty.
LABELS = ("digit", "class", "label", "identity", "category", "shape", "object_shape")

Floats = NDArray[np.float64]
Factors = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Images (N, C, H, W) uint8 of a split, the index (N, K) of each factor's value, and the names of the K factors.

    The setting `data.factors` selects the factors.
    """

    images: Tensor
    factors: Factors
    names: list[str]


def sample(data: ShardedDataset, count: int, seed: int) -> Sample:
    """Return up to `count` images of a split in a random order, because the source may be sorted by class."""
    images, factors = data.read(permute(np.arange(min(len(data), count)), len(data), seed))
    selected = data.manifest.select_factors(data.access.factors)
    columns = [data.manifest.factors.index(factor) for factor in selected]
    return Sample(images, factors[:, columns], [factor.name for factor in selected])


def label_name(label_factor: str, names: Sequence[str]) -> str | None:
    """Return the class factor: `label_factor`, or if that is empty the first of `LABELS` that exists, or None.

    Raises:
        UserError: `label_factor` is not among the names.
    """
    if label_factor and label_factor not in names:
        raise UserError(
            f"evaluate.label_factor={label_factor}: not among the factors that metrics use. "
            f"Choose from {', '.join(names) or 'none'}, or set data.factors."
        )
    return label_factor or next((label for label in LABELS if label in names), None)


@dataclass(frozen=True)
class EncodedDataset:
    """Codes and factors of N test and M train images, and the inputs of metrics that follow from them.

    The registry names the attributes of this class as inputs of metrics. Lists run over the rungs, bottom first.

    Attributes:
        codes: Encodings of the test images.
        factors: Factors of the test images (N, K).
        dimensions: Number of values of an image, C H W.
        discrete: Whether p(x|z) is a distribution of 8-bit values.
        train_rung_means: Posterior means of the train images (M, D_l).
        train_rung_samples: Posterior samples of the train images (M, D_l).
        train_factors: Factors of the train images (M, K).
        sibling_means: Codes (n, D) of the first n test images, in models of other seeds.
    """

    codes: Encodings
    factors: Factors
    names: list[str]
    dimensions: int
    discrete: bool
    seed: int
    label_factor: str = ""
    train_rung_means: list[Array] = field(default_factory=list)
    train_rung_samples: list[Array] = field(default_factory=list)
    train_factors: Factors = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    sibling_means: list[Array] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Number of images of the smaller split, min(N, M)."""
        return min(len(self.factors), len(self.train_factors))

    @property
    def rung_dims(self) -> list[int]:
        """Number of latents of each rung."""
        return [rung.shape[1] for rung in self.codes.means]

    @cached_property
    def means(self) -> Array:
        """Codes of the test images (N, D), all rungs side by side."""
        return np.concatenate(self.codes.means, axis=1)

    @cached_property
    def train_means(self) -> Array:
        """Codes of the train images (M, D), all rungs side by side."""
        return np.concatenate(self.train_rung_means, axis=1)

    @property
    def test_means(self) -> Array:
        """Codes of the first 5,000 test images, on which classifiers are tested."""
        return self.means[:_TEST_IMAGES]

    @property
    def test_factors(self) -> Factors:
        """Factors of the first 5,000 test images."""
        return self.factors[:_TEST_IMAGES]

    @property
    def probe_train_samples(self) -> list[Array]:
        """Posterior samples of the first 5,000 train images per rung."""
        return [rung[:_PROBE_IMAGES] for rung in self.train_rung_samples]

    @property
    def probe_train_factors(self) -> Factors:
        """Factors of the first 5,000 train images."""
        return self.train_factors[:_PROBE_IMAGES]

    @property
    def train_labels(self) -> Factors | None:
        """Classes of the train images (M,); None without a class factor."""
        return self._labels(self.train_factors)

    @property
    def test_labels(self) -> Factors | None:
        """Classes of the first 5,000 test images; None without a class factor."""
        return self._labels(self.test_factors)

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which latents are active (D,)."""
        return np.concatenate(self.codes.mean_kl) > self.codes.threshold

    @cached_property
    def information(self) -> Floats:
        """Fraction of each factor's entropy that each rung has information about (L, K)."""
        codes, rows = self.codes, slice(_INFORMATION_IMAGES)
        rungs = zip(codes.samples, codes.sampled_posterior_means, codes.log_sigmas, strict=True)
        with threadpool_limits(1, "blas"):  # because the products are small, and threads would wait for each other
            return np.stack(
                [rung_information(z[rows], mean[rows], sigma[rows], self.factors[rows]) for z, mean, sigma in rungs]
            )

    def select_rung(self, rung: int) -> "EncodedDataset":
        """Return the same dataset with the means of one rung only."""
        codes = replace(self.codes, means=self.codes.means[rung : rung + 1])
        return replace(self, codes=codes, train_rung_means=self.train_rung_means[rung : rung + 1])

    def _labels(self, factors: Factors) -> Factors | None:
        label = label_name(self.label_factor, self.names)
        return None if label is None else factors[:, self.names.index(label)]


@dataclass(frozen=True)
class RungFactorMatrix:
    """Inputs of the hierarchy metrics.

    Attributes:
        information: Fraction of each factor's entropy that each rung has information about (L, K).
        complexity: Fraction of each factor that a linear probe of the pixels does not explain (K,).
        names: Names of the K factors.
    """

    information: Floats
    complexity: Floats
    names: list[str]

    @property
    def centroids(self) -> Floats:
        """Level centroid of each factor (K,)."""
        return factor_centroids(self.information)


def encode_sample(
    model: HierarchicalModel, images: Sample, generator: torch.Generator, seed: int, label_factor: str = ""
) -> EncodedDataset:
    """Return test images encoded, without train images; the generator is on the model's device."""
    return EncodedDataset(
        codes=encode(model, images.images, generator),
        factors=images.factors,
        names=images.names,
        dimensions=math.prod(model.image_shape),
        discrete=model.likelihood.kind != "bernoulli",
        seed=seed,
        label_factor=label_factor,
    )


def encode_splits(
    model: HierarchicalModel,
    train: ShardedDataset,
    test: ShardedDataset,
    config: EvaluateConfig,
    siblings: Sequence[Path] = (),
) -> EncodedDataset:
    """Return codes and factors of random images of the test and the train split.

    Args:
        model: Model in evaluation mode, on its device.
        train: Split that classifiers and probes are trained on.
        test: Split to evaluate.
        config: Number of images and random seed.
        siblings: Checkpoints of the same model trained with other seeds. A checkpoint that is gone is skipped.

    Raises:
        UserError: The images do not fit the model, or the ELBO is not finite.
    """
    if test.image_shape != model.image_shape:
        raise UserError(
            f"data: the images are {test.image_shape}, the model takes {model.image_shape}. "
            "Evaluate the model on images of its own shape."
        )
    generator = torch.Generator(next(model.parameters()).device).manual_seed(config.seed)
    test_images = sample(test, config.num_images, config.seed)
    train_images = sample(train, _TRAIN_IMAGES, config.seed)
    encoded = encode_sample(model, test_images, generator, config.seed, config.label_factor)
    if not encoded.codes.finite:
        raise UserError(
            "train.learning_rate: the model's ELBO is not finite on the test split. Train with a smaller learning rate."
        )
    means, samples = means_and_samples(model, train_images.images, generator)
    sibling_means = []
    for checkpoint in siblings:
        try:
            other = load_model(checkpoint).to(generator.device)
        except UserError:  # because another command may prune checkpoints meanwhile
            continue
        sibling_means.append(np.concatenate(rung_means(other, test_images.images[:_SIBLING_IMAGES]), axis=1))
    return replace(
        encoded,
        train_rung_means=means,
        train_rung_samples=samples,
        train_factors=train_images.factors,
        sibling_means=sibling_means,
    )
