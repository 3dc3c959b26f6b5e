"""Accuracy from few labels: on codes whose answer is known, and which rows are chosen."""

import numpy as np
import pytest

from vlae.metrics import few_labels
from vlae.metrics.few_labels import few_label_accuracy

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat([2, 5, 9], [300, 200, 100]))
CENTRES = np.eye(10)[LABELS][:, [2, 5, 9]]
NOISE = RNG.normal(size=(600, 3))


def accuracy(codes: np.ndarray, labels: np.ndarray = LABELS, count: int = 6, seed: int = 0, draws: int = 10) -> float:
    return few_label_accuracy(codes[:400], labels[:400], codes[400:], labels[400:], count=count, seed=seed, draws=draws)


def test_clusters_need_a_label_each() -> None:
    codes = CENTRES + 0.05 * NOISE
    assert accuracy(codes, count=3) == 1
    shares = np.unique(LABELS[400:], return_counts=True)[1] / 200
    # With two labels one class is never predicted: which one is chance.
    assert accuracy(codes, count=2, draws=300) == pytest.approx(1 - shares.mean(), abs=0.02)


def test_more_labels_help() -> None:
    codes = CENTRES + 0.5 * NOISE
    few, some, all_rows = (accuracy(codes, count=count) for count in (3, 30, 400))
    assert few < some < all_rows + 0.02
    assert accuracy(codes, count=400, draws=1) == pytest.approx(all_rows)


def test_a_useless_code_is_at_one_over_the_classes() -> None:
    assert accuracy(NOISE, count=30, draws=60) == pytest.approx(1 / 3, abs=0.03)


def test_scale_shift_and_constant_latents_do_not_matter() -> None:
    codes = CENTRES + 0.5 * NOISE
    moved = np.concatenate([codes * np.array([1e-3, 1, 1e3]) + 5, np.full((600, 2), 0.1)], axis=1)
    assert accuracy(moved) == pytest.approx(accuracy(codes), abs=5e-3)


def test_seed() -> None:
    codes = CENTRES + 0.5 * NOISE
    assert accuracy(codes, seed=3) == accuracy(codes, seed=3)
    assert accuracy(codes, seed=3) != accuracy(codes, seed=4)


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1, 1, 1]), (30, [10, 10, 10]), (28, [9, 9, 10]), (250, [80, 85, 85])]
)
def test_the_choice_is_even_until_a_class_is_used_up(count: int, expected: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [80, 150, 170])
    rows = few_labels._even_choice(labels, count, np.random.default_rng(0))
    assert len(set(rows.tolist())) == count
    assert sorted(np.bincount(labels[rows])) == expected


def test_one_label_tells_nothing() -> None:
    still = LABELS.copy()
    still[400:] = 2
    assert np.isnan(accuracy(NOISE, still))
    assert np.isnan(accuracy(NOISE, np.full(600, 4)))


@pytest.mark.parametrize(("count", "draws"), [(1, 10), (401, 10), (6, 0)])
def test_refuses_counts(count: int, draws: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}, {draws}"):
        accuracy(NOISE, count=count, draws=draws)


def test_refuses_arrays() -> None:
    with pytest.raises(ValueError, match="labels must be"):
        accuracy(NOISE, LABELS[:, None])
    with pytest.raises(ValueError, match="same N"):
        few_label_accuracy(NOISE, LABELS[1:], NOISE, LABELS, count=3, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        accuracy(np.where(NOISE > 2, np.nan, NOISE))
