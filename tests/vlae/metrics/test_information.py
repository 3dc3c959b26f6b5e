"""Scores on codes whose answer is known: perfect, useless, duplicated; by scikit-learn and the golden values."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics._discretization import discretize
from vlae.metrics.information import (
    dcimig_score,
    entropy,
    jemmig_score,
    mig_per_factor,
    mig_score,
    mig_sup_score,
    modularity_score,
    mutual_information,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "information.json").read_text())
SCORES = {
    "mig": mig_score,
    "mig_sup": mig_sup_score,
    "modularity": modularity_score,
    "dcimig": dcimig_score,
    "jemmig": jemmig_score,
}
each_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
FACTORS = np.random.default_rng(0).integers((4, 7, 2), size=(4000, 3))
NOISE = np.random.default_rng(1).normal(size=(4000, 3)).astype(np.float32)
PERFECT = FACTORS.astype(np.float32)
# Every combination of a factor of 4 and one of 2 values equally often: the information is exact.
GRID = np.stack([np.arange(800) % 4, np.arange(800) // 4 % 2], axis=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("score", SCORES)
def test_information_metrics_agree_with_golden_values(name: str, score: str) -> None:
    """The metrics agree with scikit-learn on every representation."""
    rows = representation(name)
    result = SCORES[score](rows.train_codes, rows.train_factors)
    if np.isnan(GOLDEN[name][score]):
        # The reference has no second latent to take the gap to; here it has information 0.
        assert (name, score) in {("one_latent", "mig"), ("one_latent", "jemmig")}
        with_inactive = np.concatenate([rows.train_codes, 0 * rows.train_codes], axis=1)
        assert result == pytest.approx(SCORES[score](with_inactive, rows.train_factors))
    else:
        assert result == pytest.approx(GOLDEN[name][score], abs=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 20, 300])
@pytest.mark.parametrize("rows", [1, 7, 4000])
def test_mutual_information_agrees_with_sklearn(bins: int, rows: int) -> None:
    """Every entry is scikit-learn's."""
    codes = np.concatenate([PERFECT + 0.5 * NOISE, NOISE, 0 * NOISE[:, :1]], axis=1)[:rows]
    factors = np.concatenate([FACTORS, FACTORS[:, :1] * 10**9 - 5, 0 * FACTORS[:, :1]], axis=1)[:rows]
    binned = discretize(codes, bins).values
    expected = [[mutual_info_score(code, factor) for factor in factors.T] for code in binned]
    np.testing.assert_allclose(mutual_information(codes, factors, bins=bins), expected, atol=1e-9)


def test_mutual_information_of_independent_is_exactly_zero() -> None:
    """Independent and constant variables have exactly 0."""
    codes = np.stack([GRID[:, 1], np.full(800, 0.1)], axis=1)
    factors = np.stack([GRID[:, 0], np.full(800, 7)], axis=1)
    np.testing.assert_array_equal(mutual_information(codes, factors), np.zeros((2, 2)))
    assert mutual_information(codes, factors[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "column",
    [
        np.arange(20) / 7,
        np.arange(7) / 3,
        np.linspace(-1, 1, 21),
        NOISE[:3000, 0].astype(float),
        NOISE[:3000, 1].astype(float) * 1e-3 + 3,
        np.exp(NOISE[:500, 2].astype(float)) * 1e-3,
        np.round(NOISE[:3000, 2].astype(float), 1),
        np.full(5, 0.3),
        np.full(5, -3e4),
        np.array([2.0]),
    ],
)
def test_discretize_agrees_with_numpy_on_the_stored_dtype(column: np.ndarray, dtype: type) -> None:
    """The bins are those of numpy.histogram on the dtype of the codes."""
    code = column.astype(dtype)
    try:
        edges = np.histogram(code, 20)[1][:-1]
    except ValueError:  # numpy refuses so narrow a range: one bin
        np.testing.assert_array_equal(discretize(code[:, None], 20).values, 0)
    else:
        np.testing.assert_array_equal(discretize(code[:, None], 20).values[0], np.digitize(code, edges) - 1)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_discretize_tiny_and_huge_codes_agree_with_numpy(scale: float) -> None:
    """The bins are numpy's at any scale."""
    rng = np.random.default_rng(2)
    code = rng.normal(size=500) * scale
    edges = np.histogram(code, 20)[1][:-1]
    np.testing.assert_array_equal(discretize(code[:, None], 20).values[0], np.digitize(code, edges) - 1)


@pytest.mark.parametrize("ulps", [1, 5, 19, 21, 27, 39, 61])
def test_discretize_last_digits_agree_with_numpy(ulps: int) -> None:
    """Float32 edges a few units of the last place apart are rounded, hence far from evenly spaced."""
    code = (np.float32(1) + np.arange(ulps + 1, dtype=np.float32) * np.spacing(np.float32(1))).astype(np.float32)
    binned = discretize(code[:, None], 20).values[0]
    try:
        edges = np.histogram(code, 20)[1][:-1]
    except ValueError:
        assert (binned == 0).all()
    else:
        np.testing.assert_array_equal(binned, np.digitize(code, edges) - 1)
    assert ulps > 20 or (binned == 0).all()


def test_discretize_overflowing_range_raises() -> None:
    """The error names the latent and the dtype."""
    codes = np.array([[0, -6e4], [1, 6e4]], np.float16)
    with pytest.raises(ValueError, match=r"latent 1 .* float16"):
        discretize(codes, 20)


def test_mig_perfect_useless_duplicated() -> None:
    """MIG is 1 for perfect codes, 0 for useless and duplicated ones."""
    assert mig_score(PERFECT, FACTORS) == pytest.approx(1, abs=0.01)
    assert mig_score(NOISE, FACTORS) < 0.02
    assert mig_score(np.concatenate([PERFECT, PERFECT], axis=1), FACTORS) == pytest.approx(0)
    assert mig_score(np.zeros((4000, 3), np.float32), FACTORS) == 0
    assert mig_score(PERFECT[:, :1], FACTORS[:, :1]) == pytest.approx(1)


def test_mig_agrees_with_formula() -> None:
    """Two latents that hold I and J nats of a factor of entropy H score (I - J) / H."""
    factor = np.repeat(np.arange(4), 1000)[:, None]
    codes = np.stack([factor[:, 0] // 2, (factor[:, 0] > 2).astype(int)], axis=1).astype(np.float32)
    first, second = np.log(2), entropy(codes[:, 1].astype(int))
    assert mig_score(codes, factor) == pytest.approx((first - second) / np.log(4))


def test_mig_per_factor_is_the_mig_of_each_factor() -> None:
    """Each entry is the MIG of its factor alone; a factor with one value is NaN and does not count."""
    codes = np.concatenate([PERFECT + 0.3 * NOISE, PERFECT[:, :1]], axis=1)
    factors = np.concatenate([FACTORS, 0 * FACTORS[:, :1]], axis=1)
    gaps = mig_per_factor(codes, factors)
    assert np.isnan(gaps[3])
    np.testing.assert_allclose(gaps[:3], [mig_score(codes, factors[:, k : k + 1]) for k in range(3)])
    assert mig_score(codes, factors) == pytest.approx(gaps[:3].mean())
    assert gaps[0] < 0.5 < gaps[1]  # two latents hold the first factor


def test_mig_sup_perfect_useless_duplicated_mixed() -> None:
    """Duplicates and inactive latents cost nothing, a latent that mixes two factors does."""
    assert mig_sup_score(PERFECT, FACTORS) == pytest.approx(1, abs=0.01)
    assert mig_sup_score(NOISE, FACTORS) < 0.02
    assert mig_sup_score(np.concatenate([PERFECT, PERFECT, 0 * PERFECT], axis=1), FACTORS) == pytest.approx(1, abs=0.01)
    both = (FACTORS[:, :1] * 2 + FACTORS[:, 2:]).astype(np.float32)
    assert mig_sup_score(both, FACTORS[:, [0, 2]]) < 0.1
    assert mig_sup_score(0 * PERFECT, FACTORS) == 0


# A latent of its own for each factor of GRID; the same and one that mixes both; nothing.
OWN, MIXED, CONSTANT = GRID, np.column_stack([GRID, GRID[:, 0] * 2 + GRID[:, 1]]), np.zeros((800, 2))
WIDE, NARROW, BINS = np.log(4), np.log(2), np.log(20)


@pytest.mark.parametrize(
    ("score", "codes", "expected"),
    [
        (modularity_score, OWN, 1),
        (modularity_score, MIXED, (2 + 1 - (NARROW / WIDE) ** 2) / 3),
        (modularity_score, np.column_stack([OWN, CONSTANT]), 0.5),
        (modularity_score, CONSTANT, 0),
        (dcimig_score, OWN, 1),
        (dcimig_score, MIXED, 1),
        (dcimig_score, np.column_stack([OWN, OWN, CONSTANT]), 1),
        (dcimig_score, MIXED[:, 2:], (WIDE - NARROW) / (WIDE + NARROW)),
        (dcimig_score, CONSTANT, 0),
        (jemmig_score, OWN, 1),
        # Of two latents with all information j* holds nothing else, but the gap is gone.
        (jemmig_score, MIXED, 1 - (WIDE / (WIDE + BINS) + NARROW / (NARROW + BINS)) / 2),
        (jemmig_score, MIXED[:, ::-1], 1 - (WIDE / (WIDE + BINS) + NARROW / (NARROW + BINS)) / 2),
        (jemmig_score, MIXED[:, 2:], 1 - (NARROW / (WIDE + BINS) + WIDE / (NARROW + BINS)) / 2),
        (jemmig_score, CONSTANT, 1 - (WIDE / (WIDE + BINS) + NARROW / (NARROW + BINS)) / 2),
    ],
)
def test_information_metrics_agree_with_closed_forms(
    score: Callable[..., float], codes: np.ndarray, expected: float
) -> None:
    """On a full grid of factors the information is exact."""
    assert score(codes.astype(np.float32), GRID) == pytest.approx(expected)


@each_score
def test_information_metrics_order_and_names_do_not_matter(score: Callable[..., float]) -> None:
    """Neither order, names of values nor constant factors matter."""
    rng = np.random.default_rng(2)
    codes = np.concatenate([PERFECT + NOISE, PERFECT[:, :1]], axis=1)
    expected = score(codes, FACTORS)
    rows = rng.permutation(4000)
    assert score(codes[rows], FACTORS[rows]) == pytest.approx(expected)
    assert score(codes[:, ::-1], FACTORS[:, ::-1]) == pytest.approx(expected)
    names = np.array([5, -(10**12), 0, 17, 10**12, 3, 4])
    assert score(codes, names[FACTORS]) == pytest.approx(expected)
    assert score(codes, np.column_stack([FACTORS, np.full(4000, 3)])) == pytest.approx(expected)
    assert score(codes, FACTORS.astype(np.uint8)) == pytest.approx(expected)


@each_score
def test_information_metrics_are_in_unit_interval(score: Callable[..., float]) -> None:
    """All metrics are in [0, 1]."""
    for codes in (PERFECT, NOISE, 0 * NOISE, PERFECT + NOISE, np.repeat(PERFECT, 3, axis=1)):
        assert -1e-9 <= score(codes, FACTORS) <= 1 + 1e-9
    assert 0 <= score(NOISE[:5], FACTORS[:5]) <= 1 + 1e-9  # fewer rows than bins


@each_score
def test_information_metrics_too_few_factors_are_nan(score: Callable[..., float]) -> None:
    """The metrics are NaN where no factor, or only one, varies."""
    assert np.isnan(score(NOISE, np.zeros((4000, 2), int)))
    assert np.isnan(score(NOISE[:1], FACTORS[:1]))
    between_factors = score in {mig_sup_score, modularity_score, dcimig_score}
    assert np.isnan(score(PERFECT, FACTORS[:, :1])) == between_factors


@pytest.mark.parametrize(
    ("codes", "factors", "bins", "message"),
    [
        (NOISE[:10], FACTORS, 20, "codes, factors"),
        (NOISE[:, 0], FACTORS, 20, "codes, factors"),
        (NOISE[:0], FACTORS[:0], 20, r"\(0, 3\)"),
        (NOISE[:, :0], FACTORS, 20, r"\(4000, 0\)"),
        (np.full((4000, 2), np.nan), FACTORS, 20, "codes"),
        (NOISE, FACTORS, 0, "bins: .*0"),
    ],
)
def test_information_metrics_invalid_input_raises(
    codes: np.ndarray, factors: np.ndarray, bins: int, message: str
) -> None:
    """The error names the argument and its shape."""
    for score in (*SCORES.values(), mutual_information):
        with pytest.raises(ValueError, match=message):
            score(codes, factors, bins=bins)


@pytest.mark.parametrize(("variance", "expected"), [(0.02, 0.5), (0.005, 1.0)])
def test_mig_sup_leaves_out_latents_of_small_variance(variance: float, expected: float) -> None:
    """A latent that tells nothing halves the score, unless its variance is below .01."""
    factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(2, axis=0)
    noise = np.sqrt(variance) * np.tile([-1.0, 1.0], 4)
    assert mig_sup_score(np.column_stack([factors[:, 0], noise]), factors) == pytest.approx(expected)
