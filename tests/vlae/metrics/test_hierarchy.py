"""Scores of the rung x factor matrix, by hand on small matrices, and where the answer is known."""

import numpy as np
import pytest

from vlae.metrics import complexity_correlation, level_centroids, rung_compactness, rung_modularity

SCORES = (rung_modularity, rung_compactness)


def test_by_hand() -> None:
    information = np.array([[0.6, 0.2, 0.0], [0.1, 0.3, 0.4]])
    # Rungs: .6/.8 and .4/.8, K = 3. Factors: .6/.7, .3/.5 and .4/.4, L = 2.
    assert rung_modularity(information) == pytest.approx(((0.75 + 0.5) / 2 - 1 / 3) / (2 / 3))
    assert rung_compactness(information) == pytest.approx(((6 / 7 + 0.6 + 1) / 3 - 0.5) / 0.5)
    np.testing.assert_allclose(level_centroids(information), [1 / 7, 3 / 5, 1])
    np.testing.assert_allclose(level_centroids(np.array([[0.2], [0.2], [0.4]])), [(0.2 + 2 * 0.4) / (2 * 0.8)])


def test_perfect_duplicated_and_spread() -> None:
    for score in SCORES:
        assert score(np.eye(3)) == pytest.approx(1)
        assert score(np.full((3, 4), 0.5)) == pytest.approx(0)
    assert rung_modularity(np.tile(np.eye(2), (2, 1))) == pytest.approx(1)
    assert rung_compactness(np.tile(np.eye(2), (2, 1))) == pytest.approx((0.5 - 0.25) / 0.75)


def test_what_carries_nothing_is_left_out() -> None:
    information = np.array([[0.6, 0.2, 0.0], [0.1, 0.3, 0.4]])
    padded = np.full((3, 5), 0.005)
    padded[:2, :3] = information
    padded[:, 4] = np.nan
    for score in SCORES:
        assert score(padded) == pytest.approx(score(information), abs=0.02)
        padded[2], padded[:, 3] = 0, 0
        padded[:, 4] = np.nan
        assert score(padded) == pytest.approx(score(information))
    np.testing.assert_array_equal(np.isnan(level_centroids(padded)), [False, False, False, True, True])
    assert rung_modularity(information, threshold=0.3) == pytest.approx(((0.75 + 0.5) / 2 - 1 / 3) / (2 / 3))
    assert rung_modularity(information, threshold=0.5) != rung_modularity(information)


def test_undefined_cases() -> None:
    for score in SCORES:
        assert np.isnan(score(np.zeros((2, 3))))
        assert np.isnan(score(np.full((2, 3), np.nan)))
    assert np.isnan(rung_modularity(np.array([[0.5], [0.2]])))
    assert np.isnan(rung_compactness(np.array([[0.5, 0.2], [0, 0]])))
    assert rung_modularity(np.array([[0.5, 0.0], [0, 0.4], [0, 0]])) == pytest.approx(1)
    assert np.isnan(level_centroids(np.array([[0.5, 0.2]]))).all()
    assert np.isnan(level_centroids(np.zeros((3, 2)))).all()


def test_bad_information_is_named() -> None:
    for measure in (*SCORES, level_centroids):
        with pytest.raises(ValueError, match=r"got \(3,\)"):
            measure(np.ones(3))
        with pytest.raises(ValueError, match=r"got \(2, 0\)"):
            measure(np.ones((2, 0)))
        with pytest.raises(ValueError, match="not negative"):
            measure(np.array([[0.1, -0.1]]))
        with pytest.raises(ValueError, match="finite"):
            measure(np.array([[0.1, np.inf]]))
        with pytest.raises(ValueError, match="threshold must be above 0, got 0"):
            measure(np.ones((2, 2)), threshold=0)


def test_complexity_correlation() -> None:
    """Without ties Spearman's is 1 - 6 sum d^2 / (n (n^2 - 1))."""
    complexity = np.array([0.1, 0.4, 0.2, 0.9, np.nan])
    centroids = np.array([0.0, 0.3, 0.5, 1.0, 0.7])
    assert complexity_correlation(centroids, complexity) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert complexity_correlation(np.exp(complexity), complexity) == pytest.approx(1)
    assert complexity_correlation(-complexity, complexity) == pytest.approx(-1)
    assert np.isnan(complexity_correlation(np.array([0, 1, np.nan, np.nan, 1]), complexity))
    assert np.isnan(complexity_correlation(np.full(5, 0.5), complexity))
    with pytest.raises(ValueError, match=r"\(5,\), \(4,\)"):
        complexity_correlation(centroids, complexity[:4])
    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        complexity_correlation(centroids[None], complexity[None])
