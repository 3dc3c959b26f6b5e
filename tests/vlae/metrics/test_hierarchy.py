"""Scores of the rung x factor matrix, by hand on small matrices, and where the value follows from the construction."""

import numpy as np
import pytest

from vlae.metrics import centroid_complexity_spearman, factor_centroids, rung_compactness, rung_modularity

SCORES = (rung_modularity, rung_compactness)


def test_rung_metrics_agree_with_formula() -> None:
    """The metrics of a small matrix are those computed by hand."""
    information = np.array([[0.6, 0.2, 0.0], [0.1, 0.3, 0.4]])
    # Rungs: .6/.8 and .4/.8, K = 3. Factors: .6/.7, .3/.5 and .4/.4, L = 2.
    assert rung_modularity(information) == pytest.approx(((0.75 + 0.5) / 2 - 1 / 3) / (2 / 3))
    assert rung_compactness(information) == pytest.approx(((6 / 7 + 0.6 + 1) / 3 - 0.5) / 0.5)
    np.testing.assert_allclose(factor_centroids(information), [1 / 7, 3 / 5, 1])
    np.testing.assert_allclose(factor_centroids(np.array([[0.2], [0.2], [0.4]])), [(0.2 + 2 * 0.4) / (2 * 0.8)])


def test_rung_metrics_perfect_duplicated_and_uniform() -> None:
    """Perfect rungs score 1, uniform ones 0; a duplicated code costs compactness only."""
    for score in SCORES:
        assert score(np.eye(3)) == pytest.approx(1)
        assert score(np.full((3, 4), 0.5)) == pytest.approx(0)
    assert rung_modularity(np.tile(np.eye(2), (2, 1))) == pytest.approx(1)
    assert rung_compactness(np.tile(np.eye(2), (2, 1))) == pytest.approx((0.5 - 0.25) / 0.75)


def test_rung_metrics_uninformative_entries_are_left_out() -> None:
    """Collapsed rungs and factors in no rung change nothing."""
    information = np.array([[0.6, 0.2, 0.0], [0.1, 0.3, 0.4]])
    padded = np.full((3, 5), 0.005)
    padded[:2, :3] = information
    padded[:, 4] = np.nan
    for score in SCORES:
        assert score(padded) == pytest.approx(score(information), abs=0.02)
        padded[2], padded[:, 3] = 0, 0
        padded[:, 4] = np.nan
        assert score(padded) == pytest.approx(score(information))
    np.testing.assert_array_equal(np.isnan(factor_centroids(padded)), [False, False, False, True, True])
    assert rung_modularity(information, threshold=0.3) == pytest.approx(((0.75 + 0.5) / 2 - 1 / 3) / (2 / 3))
    assert rung_modularity(information, threshold=0.5) != rung_modularity(information)


def test_rung_metrics_undefined_cases_are_nan() -> None:
    """With fewer than two informative rungs or factors the metrics are NaN."""
    for score in SCORES:
        assert np.isnan(score(np.zeros((2, 3))))
        assert np.isnan(score(np.full((2, 3), np.nan)))
    assert np.isnan(rung_modularity(np.array([[0.5], [0.2]])))
    assert np.isnan(rung_compactness(np.array([[0.5, 0.2], [0, 0]])))
    assert rung_modularity(np.array([[0.5, 0.0], [0, 0.4], [0, 0]])) == pytest.approx(1)
    assert np.isnan(factor_centroids(np.array([[0.5, 0.2]]))).all()
    assert np.isnan(factor_centroids(np.zeros((3, 2)))).all()


def test_rung_metrics_invalid_input_raises() -> None:
    """The error names the argument and its shape."""
    for metric in (*SCORES, factor_centroids):
        with pytest.raises(ValueError, match=r"\(3,\)"):
            metric(np.ones(3))
        with pytest.raises(ValueError, match=r"\(2, 0\)"):
            metric(np.ones((2, 0)))
        with pytest.raises(ValueError, match="information"):
            metric(np.array([[0.1, -0.1]]))
        with pytest.raises(ValueError, match="information"):
            metric(np.array([[0.1, np.inf]]))
        with pytest.raises(ValueError, match="threshold"):
            metric(np.ones((2, 2)), threshold=0)


def test_centroid_complexity_agrees_with_spearman() -> None:
    """Without ties Spearman's is 1 - 6 sum d^2 / (n (n^2 - 1))."""
    complexity = np.array([0.1, 0.4, 0.2, 0.9, np.nan])
    centroids = np.array([0.0, 0.3, 0.5, 1.0, 0.7])
    assert centroid_complexity_spearman(centroids, complexity) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert centroid_complexity_spearman(np.exp(complexity), complexity) == pytest.approx(1)
    assert centroid_complexity_spearman(-complexity, complexity) == pytest.approx(-1)
    assert np.isnan(centroid_complexity_spearman(np.array([0, 1, np.nan, np.nan, 1]), complexity))
    assert np.isnan(centroid_complexity_spearman(np.full(5, 0.5), complexity))
    with pytest.raises(ValueError, match=r"\(5,\), \(4,\)"):
        centroid_complexity_spearman(centroids, complexity[:4])
    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        centroid_complexity_spearman(centroids[None], complexity[None])
