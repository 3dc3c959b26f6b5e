"""Accuracy from few labels: on codes whose value follows from the construction, and the choice of rows."""

import numpy as np
import pytest

from vlae.metrics import few_labels
from vlae.metrics.few_labels import few_label_accuracy

LABELS = np.random.default_rng(0).permutation(np.repeat([2, 5, 9], [300, 200, 100]))
CENTERS = np.eye(10)[LABELS][:, [2, 5, 9]]
NOISE = np.random.default_rng(1).normal(size=(600, 3))


def accuracy(codes: np.ndarray, labels: np.ndarray = LABELS, count: int = 6, seed: int = 0, draws: int = 10) -> float:
    return few_label_accuracy(codes[:400], labels[:400], codes[400:], labels[400:], count=count, seed=seed, draws=draws)


def test_few_labels_clusters_need_one_label_each() -> None:
    """Three labels identify three clusters; with two, one class is never predicted."""
    codes = CENTERS + 0.05 * NOISE
    assert accuracy(codes, count=3) == 1
    frequencies = np.unique(LABELS[400:], return_counts=True)[1] / 200
    assert accuracy(codes, count=2, draws=300) == pytest.approx(1 - frequencies.mean(), abs=0.02)


def test_few_labels_more_labels_help() -> None:
    """The accuracy rises with the number of labels."""
    codes = CENTERS + 0.5 * NOISE
    few, some, all_rows = (accuracy(codes, count=count) for count in (3, 30, 400))
    assert few < some < all_rows + 0.02
    assert accuracy(codes, count=400, draws=1) == pytest.approx(all_rows)


def test_few_labels_useless_code_is_at_chance() -> None:
    """Noise gets one over the number of classes."""
    assert accuracy(NOISE, count=30, draws=60) == pytest.approx(1 / 3, abs=0.03)


def test_few_labels_scale_shift_constants_do_not_matter() -> None:
    """Neither scale, shift nor constant latents matter."""
    codes = CENTERS + 0.5 * NOISE
    moved = np.concatenate([codes * np.array([1e-3, 1, 1e3]) + 5, np.full((600, 2), 0.1)], axis=1)
    assert accuracy(moved) == pytest.approx(accuracy(codes), abs=5e-3)


def test_few_labels_seed_decides() -> None:
    """The same seed gives the same accuracy, another seed another."""
    codes = CENTERS + 0.5 * NOISE
    assert accuracy(codes, seed=3) == accuracy(codes, seed=3)
    assert accuracy(codes, seed=3) != accuracy(codes, seed=4)


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1, 1, 1]), (30, [10, 10, 10]), (28, [9, 9, 10]), (250, [80, 85, 85])]
)
def test_balanced_rows_are_even_until_a_class_is_used_up(count: int, expected: list[int]) -> None:
    """Labeled rows are spread evenly over the classes."""
    labels = np.repeat([0, 1, 2], [80, 150, 170])
    rows = few_labels._balanced_rows(labels, count, np.random.default_rng(0))
    assert len(set(rows.tolist())) == count
    assert sorted(np.bincount(labels[rows])) == expected


def test_few_labels_single_label_is_nan() -> None:
    """With one value in either set the accuracy is NaN."""
    constant = LABELS.copy()
    constant[400:] = 2
    assert np.isnan(accuracy(NOISE, constant))
    assert np.isnan(accuracy(NOISE, np.full(600, 4)))


@pytest.mark.parametrize(("count", "draws"), [(1, 10), (401, 10), (6, 0)])
def test_few_labels_invalid_counts_raise(count: int, draws: int) -> None:
    """The error names the count and the draws."""
    with pytest.raises(ValueError, match=f"{count}, {draws}"):
        accuracy(NOISE, count=count, draws=draws)


def test_few_labels_invalid_arrays_raise() -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match="labels"):
        accuracy(NOISE, LABELS[:, None])
    with pytest.raises(ValueError, match="codes, factors"):
        few_label_accuracy(NOISE, LABELS[1:], NOISE, LABELS, count=3, seed=0)
    with pytest.raises(ValueError, match="codes"):
        accuracy(np.where(NOISE > 2, np.nan, NOISE))
