"""Inputs of the metrics: what is learned from the train split, and what it is judged on."""

from pathlib import Path

import numpy as np
import torch
from helpers.datasets import open_split
from helpers.small_models import small

from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.inputs import encode_splits, sample


def test_encode_splits_keeps_train_and_test_apart(digit_dataset: Path) -> None:
    train, test = (open_split(digit_dataset, split) for split in ("train", "test"))
    model = small("vlae", (2, 3), (3, 16, 16)).eval()
    encoded = encode_splits(model, train, test, EvaluateConfig(seed=3, num_images=10_000))
    assert len(encoded.train_factors) == len(train) != len(test) == len(encoded.factors)
    train_images, test_images = sample(train, 10_000, 3), sample(test, 10_000, 3)
    np.testing.assert_array_equal(encoded.train_factors, train_images.factors)
    np.testing.assert_array_equal(encoded.factors, test_images.factors)
    for images, rungs in ((train_images, encoded.train_rung_means), (test_images, encoded.codes.means)):
        with torch.no_grad():
            expected = [means.numpy() for means in model.means(images.images.float() / 255)]
        for means, own in zip(expected, rungs, strict=True):
            np.testing.assert_allclose(own, means, atol=1e-5)
    assert [rung.shape for rung in encoded.train_rung_samples] == [(len(train), 2), (len(train), 3)]
