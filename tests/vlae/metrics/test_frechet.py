"""The Frechet distance, against scipy's matrix root and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vlae.metrics import frechet_distance


def features(seed: int, rows: int, dims: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


@pytest.mark.parametrize("dims", [1, 2, 30])
def test_frechet_agrees_with_matrix_root(dims: int) -> None:
    """The distance agrees with scipy's matrix root, in both orders."""
    a, b = features(0, 200, dims), features(1, 150, dims)
    first, second = (np.cov(rows, rowvar=False).reshape(dims, dims) for rows in (a, b))
    root = np.trace(np.real(sqrtm(first @ second)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_shift_and_scale_agree_with_closed_form() -> None:
    """A shift by s costs |s|^2, a scale by c (c - 1)^2 tr S, also for singular covariances."""
    a = features(0, 10, 20)
    centered = a - a.mean(0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 2.0) == pytest.approx(20 * 4, abs=1e-5)
    assert frechet_distance(centered, 3 * centered) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)), rel=1e-6)


def test_frechet_collapsed_features_have_zero_covariance() -> None:
    """Constant features have covariance 0."""
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
        (np.ones((4, 0)), np.ones((4, 0)), r"\(4, 0\)"),
        (np.ones((4, 2)), np.full((4, 2), np.inf), "codes"),
    ],
)
def test_frechet_invalid_input_raises(a: np.ndarray, b: np.ndarray, message: str) -> None:
    """The error names the shapes."""
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
