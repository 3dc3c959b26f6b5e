"""The Frechet distance, against scipy's matrix root and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vlae.metrics import frechet_distance


def features(seed: int, rows: int, dims: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


@pytest.mark.parametrize("dims", [1, 2, 30])
def test_agrees_with_the_matrix_root(dims: int) -> None:
    a, b = features(0, 200, dims), features(1, 150, dims)
    first, second = (np.cov(part, rowvar=False).reshape(dims, dims) for part in (a, b))
    root = np.trace(np.real(sqrtm(first @ second)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_shift_and_scale_by_hand() -> None:
    """A shift by s costs |s|^2; a scale by c costs (c - 1)^2 tr S: also where the covariance is singular."""
    a = features(0, 10, 20)
    centerd = a - a.mean(0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 2.0) == pytest.approx(20 * 4, abs=1e-5)
    assert frechet_distance(centerd, 3 * centerd) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)), rel=1e-6)


def test_collapsed_features() -> None:
    a = features(0, 50, 4).astype(np.float32)
    assert frechet_distance(np.zeros((5, 4)), np.zeros((9, 4))) == 0
    expected = a.var(axis=0, ddof=1, dtype=np.float64).sum() + (a.mean(0, dtype=np.float64) ** 2).sum()
    assert frechet_distance(a, np.zeros((5, 4))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 3)), r"\(4, 2\), \(4, 3\)"),
        (np.ones((1, 2)), np.ones((4, 2)), r"\(1, 2\)"),
        (np.ones(4), np.ones(4), r"\(4,\)"),
        (np.ones((4, 0)), np.ones((4, 0)), r"D > 0"),
        (np.ones((4, 2)), np.full((4, 2), np.inf), "not finite"),
    ],
)
def test_bad_features_are_named(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
