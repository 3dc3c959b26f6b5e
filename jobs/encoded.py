"""Both splits of a dataset as a model sees them: what all scores of codes are computed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.checkpoint import load_model
from jobs.codes import Array, Codes, encode, rung_codes, rung_means
from jobs.config import EvaluateConfig
from jobs.data.split import ShardedSplit
from jobs.errors import UserError
from jobs.measures import Sample, sample
from vlae.models.base import HierarchicalModel

_TRAIN_IMAGES = 10_000  # that probes learn from, as many as the literature takes
_SIBLING_IMAGES = 2000  # on which models of other seeds are compared


@dataclass(frozen=True)
class Encoded:
    """Codes and factors of N test and M train images; lists run over the rungs, bottom first."""

    codes: Codes  # of the test images
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
    train: ShardedSplit,
    test: ShardedSplit,
    config: EvaluateConfig,
    siblings: Sequence[Path] = (),
) -> Encoded:
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
    return Encoded(
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
