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

SCORES = (gaussian_total_correlation, gaussian_wasserstein_correlation, mean_pairwise_mutual_information)
DEPENDENT = ("duplicated", "many_copies", "rotated", "noisy", "circular", "partial", "random", "scaled", "perfect")


def _with_covariance(covariance: np.ndarray, rows: int = 200) -> np.ndarray:
    """Rows whose sample covariance is exactly this."""
    raw = np.random.default_rng(0).normal(size=(rows, len(covariance)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return white @ np.linalg.cholesky(covariance).T + 3


@pytest.mark.parametrize("correlation", [0.0, 0.3, -0.9])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-3, 1e3)])
def test_gaussian_metrics_agree_with_closed_form(correlation: float, scales: tuple[float, float]) -> None:
    """Two latents of a given correlation have closed forms."""
    covariance = np.outer(scales, scales) * np.array([[1, correlation], [correlation, 1]])
    codes = _with_covariance(covariance)
    assert gaussian_total_correlation(codes) == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=1e-9)
    if scales == (1.0, 1.0):
        expected = 4 - 2 * (np.sqrt(1 + correlation) + np.sqrt(1 - correlation))
        assert gaussian_wasserstein_correlation(codes) == pytest.approx(expected, abs=1e-9)
        assert gaussian_wasserstein_correlation(codes, normalize=True) == pytest.approx(expected / 2, abs=1e-9)


@pytest.mark.parametrize("name", DEPENDENT)
def test_gaussian_metrics_agree_with_definitions(name: str) -> None:
    """The metrics are those of the covariance, by determinant and matrix root."""
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
def test_pairwise_information_agrees_with_sklearn(name: str) -> None:
    """Every pair is scikit-learn's."""
    codes = representation(name).train_codes
    cut = [np.digitize(code, np.histogram(code, 20)[1][:-1]) for code in codes.T]
    pairs = [mutual_info_score(cut[i], cut[j]) for i in range(len(cut)) for j in range(i)]
    assert mean_pairwise_mutual_information(codes) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_dependence_of_copies() -> None:
    """Copies have infinite total correlation and the information of their entropy."""
    rng = np.random.default_rng(2)
    code = rng.integers(0, 4, 1000).astype(np.float32)
    copies = np.stack([code, code, 3 - 2 * code], axis=1)
    counts = np.bincount(code.astype(int)) / 1000
    assert gaussian_total_correlation(copies) == np.inf
    assert mean_pairwise_mutual_information(copies) == pytest.approx(-(counts * np.log(counts)).sum())
    same = np.stack([code] * 4, axis=1)
    assert gaussian_wasserstein_correlation(same, normalize=True) == pytest.approx(2 - 2 / np.sqrt(4), abs=1e-6)


def test_total_correlation_singular_codes_are_infinite() -> None:
    """Linear functions of latents, and as few rows as latents, are singular."""
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(1000, 3)).astype(np.float32)
    assert gaussian_total_correlation(np.column_stack([codes, codes.sum(axis=1)])) == np.inf
    assert gaussian_total_correlation(codes[:3]) == np.inf
    nearly = codes[:, 0] + 1e-4 * rng.normal(size=1000)
    assert 8 < gaussian_total_correlation(np.column_stack([codes, nearly])) < 12  # about log 10^4
    assert np.isfinite(gaussian_wasserstein_correlation(codes[:2]))


@pytest.mark.parametrize("scale", [1e-30, 1e-200, 1e200])
def test_gaussian_metrics_scale_does_not_matter(scale: float) -> None:
    """Neither tiny nor huge codes overflow."""
    codes = _with_covariance(np.array([[1, 0.5], [0.5, 2]]))
    assert gaussian_total_correlation(codes * scale) == pytest.approx(gaussian_total_correlation(codes))
    result = gaussian_wasserstein_correlation(codes * scale, normalize=True)
    assert result == pytest.approx(gaussian_wasserstein_correlation(codes, normalize=True))


def test_dependence_constant_latents() -> None:
    """Constant latents change nothing, but count in the mean over pairs."""
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(500, 2)) @ [[1, 0.4], [0, 1]]
    with_constant = np.column_stack([codes, np.full((500, 2), 0.1)])
    assert gaussian_total_correlation(with_constant) == pytest.approx(gaussian_total_correlation(codes))
    assert gaussian_wasserstein_correlation(with_constant) == pytest.approx(gaussian_wasserstein_correlation(codes))
    assert mean_pairwise_mutual_information(with_constant) == pytest.approx(mean_pairwise_mutual_information(codes) / 6)


@pytest.mark.parametrize("codes", [np.zeros((50, 3)), np.ones((1, 3)), np.arange(50.0)[:, None], np.zeros((50, 0))])
def test_dependence_fewer_than_two_latents_is_zero(codes: np.ndarray) -> None:
    """With fewer than two latents that vary there is no dependence."""
    assert gaussian_total_correlation(codes) == 0
    assert gaussian_wasserstein_correlation(codes) == 0
    assert gaussian_wasserstein_correlation(codes, normalize=True) == 0
    result = mean_pairwise_mutual_information(codes)
    assert result == 0 if codes.shape[1] > 1 else np.isnan(result)


@pytest.mark.parametrize("score", SCORES)
def test_dependence_order_does_not_matter(score: Callable[..., float]) -> None:
    """Neither the order of rows nor of latents matters."""
    rng = np.random.default_rng(2)
    codes = representation("rotated").train_codes
    shuffled = codes[rng.permutation(len(codes))][:, [2, 0, 1]]
    assert score(shuffled) == pytest.approx(score(codes))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((0, 3)), r"\(0, 3\)"),
        (np.full((5, 2), np.nan), "codes"),
        (np.full((5, 2), np.inf), "codes"),
    ],
)
def test_dependence_invalid_input_raises(score: Callable[..., float], codes: np.ndarray, message: str) -> None:
    """The error names the argument and its shape."""
    with pytest.raises(ValueError, match=message):
        score(codes)


def test_pairwise_information_invalid_bins_raise() -> None:
    """The error names the bins."""
    with pytest.raises(ValueError, match=r"bins.*0"):
        mean_pairwise_mutual_information(np.eye(3), bins=0)
