"""Dependence between latents: closed forms of Gaussians, scikit-learn, and codes that have none."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics import mutual_info_score

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.unsupervised import (
    gaussian_total_correlation,
    gaussian_wasserstein_correlation,
    mean_pairwise_mutual_information,
)

RNG = np.random.default_rng(0)
SCORES = (gaussian_total_correlation, gaussian_wasserstein_correlation, mean_pairwise_mutual_information)
DEPENDENT = ("duplicated", "many_copies", "rotated", "noisy", "circular", "partial", "random", "scaled", "perfect")


def _with_covariance(covariance: np.ndarray, rows: int = 200) -> np.ndarray:
    """Rows whose sample covariance is exactly this."""
    raw = RNG.normal(size=(rows, len(covariance)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return white @ np.linalg.cholesky(covariance).T + 3


@pytest.mark.parametrize("correlation", [0.0, 0.3, -0.9])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-3, 1e3)])
def test_two_gaussians(correlation: float, scales: tuple[float, float]) -> None:
    covariance = np.outer(scales, scales) * np.array([[1, correlation], [correlation, 1]])
    codes = _with_covariance(covariance)
    assert gaussian_total_correlation(codes) == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=1e-9)
    if scales == (1.0, 1.0):
        expected = 4 - 2 * (np.sqrt(1 + correlation) + np.sqrt(1 - correlation))
        assert gaussian_wasserstein_correlation(codes) == pytest.approx(expected, abs=1e-9)
        assert gaussian_wasserstein_correlation(codes, normalize=True) == pytest.approx(expected / 2, abs=1e-9)


@pytest.mark.parametrize("name", DEPENDENT)
def test_definitions(name: str) -> None:
    codes = representation(name).train_codes
    covariance = np.cov(codes.T.astype(np.float64))
    total = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    assert gaussian_total_correlation(codes) == pytest.approx(total, abs=1e-6)
    root = sqrtm(covariance * np.diag(covariance)[:, None])
    distance = 2 * np.trace(covariance) - 2 * np.trace(root).real
    trace = np.trace(covariance)
    assert gaussian_wasserstein_correlation(codes) == pytest.approx(distance, abs=1e-6 * trace)
    assert gaussian_wasserstein_correlation(codes, normalize=True) == pytest.approx(distance / trace, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"one_latent"}))
def test_mean_pairwise_information_agrees_with_scikit_learn(name: str) -> None:
    codes = representation(name).train_codes
    cut = [np.digitize(code, np.histogram(code, 20)[1][:-1]) for code in codes.T]
    told = [mutual_info_score(cut[i], cut[j]) for i in range(len(cut)) for j in range(i)]
    assert mean_pairwise_mutual_information(codes) == pytest.approx(np.mean(told), abs=1e-6)


def test_copies() -> None:
    code = RNG.integers(0, 4, 1000).astype(np.float32)
    copies = np.stack([code, code, 3 - 2 * code], axis=1)
    counts = np.bincount(code.astype(int)) / 1000
    assert gaussian_total_correlation(copies) == np.inf
    assert mean_pairwise_mutual_information(copies) == pytest.approx(-(counts * np.log(counts)).sum())
    same = np.stack([code] * 4, axis=1)
    assert gaussian_wasserstein_correlation(same, normalize=True) == pytest.approx(2 - 2 / np.sqrt(4), abs=1e-6)


def test_linear_functions_and_few_rows_are_singular() -> None:
    codes = RNG.normal(size=(1000, 3)).astype(np.float32)
    assert gaussian_total_correlation(np.column_stack([codes, codes.sum(axis=1)])) == np.inf
    assert gaussian_total_correlation(codes[:3]) == np.inf
    nearly = codes[:, 0] + 1e-4 * RNG.normal(size=1000)
    assert 8 < gaussian_total_correlation(np.column_stack([codes, nearly])) < 12  # about log 10^4
    assert np.isfinite(gaussian_wasserstein_correlation(codes[:2]))


@pytest.mark.parametrize("scale", [1e-30, 1e-200, 1e200])
def test_tiny_and_huge_codes(scale: float) -> None:
    codes = _with_covariance(np.array([[1, 0.5], [0.5, 2]]))
    assert gaussian_total_correlation(codes * scale) == pytest.approx(gaussian_total_correlation(codes))
    found = gaussian_wasserstein_correlation(codes * scale, normalize=True)
    assert found == pytest.approx(gaussian_wasserstein_correlation(codes, normalize=True))


def test_constant_latents() -> None:
    codes = RNG.normal(size=(500, 2)) @ [[1, 0.4], [0, 1]]
    dead = np.column_stack([codes, np.full((500, 2), 0.1)])
    assert gaussian_total_correlation(dead) == pytest.approx(gaussian_total_correlation(codes))
    assert gaussian_wasserstein_correlation(dead) == pytest.approx(gaussian_wasserstein_correlation(codes))
    # They count in the mean: one pair of six is not of a constant.
    assert mean_pairwise_mutual_information(dead) == pytest.approx(mean_pairwise_mutual_information(codes) / 6)


@pytest.mark.parametrize("codes", [np.zeros((50, 3)), np.ones((1, 3)), np.arange(50.0)[:, None], np.zeros((50, 0))])
def test_fewer_than_two_latents_that_vary(codes: np.ndarray) -> None:
    assert gaussian_total_correlation(codes) == 0
    assert gaussian_wasserstein_correlation(codes) == 0
    assert gaussian_wasserstein_correlation(codes, normalize=True) == 0
    found = mean_pairwise_mutual_information(codes)
    assert found == 0 if codes.shape[1] > 1 else np.isnan(found)


@pytest.mark.parametrize("score", SCORES)
def test_order_does_not_matter(score: Callable[..., float]) -> None:
    codes = representation("rotated").train_codes
    shuffled = codes[RNG.permutation(len(codes))][:, [2, 0, 1]]
    assert score(shuffled) == pytest.approx(score(codes))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros(5), r"got \(5,\)"),
        (np.zeros((0, 3)), r"got \(0, 3\)"),
        (np.full((5, 2), np.nan), "not finite"),
        (np.full((5, 2), np.inf), "not finite"),
    ],
)
def test_bad_input_is_named(score: Callable[..., float], codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(codes)


def test_bad_bins_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        mean_pairwise_mutual_information(np.eye(3), bins=0)
