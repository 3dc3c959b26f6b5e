"""Explicitness against scikit-learn, and on input whose value follows from the construction."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.explicitness import explicitness_score

GOLDEN = json.loads((Path(__file__).parent / "golden" / "explicitness.json").read_text())
FACTORS = np.random.default_rng(0).integers((2, 4), size=(600, 2))
CODES = FACTORS + np.random.default_rng(1).normal(0, 0.6, (600, 2))


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:400], factors[:400], codes[400:], factors[400:]


@pytest.mark.parametrize("name", NAMES)
def test_explicitness_representations_agree_with_reference(name: str) -> None:
    """The metric agrees with scikit-learn on every representation."""
    data = representation(name)
    result = explicitness_score(data.train_codes, data.train_factors, data.test_codes, data.test_factors)
    assert result == pytest.approx(GOLDEN[name]["explicitness"], abs=2e-3)


def test_explicitness_one_latent_gives_rank_statistic() -> None:
    """The regression is monotone in its only latent: the area is that of the latent itself."""
    test, truth = CODES[400:, 0], FACTORS[400:, 0]
    ones, zeros = test[truth == 1], test[truth == 0]
    expected = mannwhitneyu(ones, zeros).statistic / len(ones) / len(zeros)
    assert explicitness_score(*halves(CODES[:, :1], FACTORS[:, :1])) == pytest.approx(expected)


def test_explicitness_scale_shift_constants_do_not_matter() -> None:
    """Neither scale, shift nor constant latents matter."""
    plain = explicitness_score(*halves(CODES))
    assert explicitness_score(*halves(CODES * np.array([1e-3, 1e3]) - 7)) == pytest.approx(plain, abs=1e-3)
    with_constant = np.concatenate([CODES, np.full((600, 3), 0.1)], axis=1)
    assert explicitness_score(*halves(with_constant)) == pytest.approx(plain, abs=1e-3)
    assert explicitness_score(*halves(np.zeros((600, 2)))) == 0.5


def test_explicitness_value_names_do_not_matter() -> None:
    """Values are categories."""
    assert explicitness_score(*halves(CODES, 9 - 3 * FACTORS)) == pytest.approx(
        explicitness_score(*halves(CODES)), abs=1e-3
    )


def test_explicitness_values_of_one_split_are_left_out() -> None:
    """A value without train rows counts as the rest; a value without test rows is left out."""
    unseen, untested = FACTORS[:, 1:].copy(), FACTORS[:, 1:].copy()
    unseen[:400][unseen[:400] == 3] = 0
    untested[400:][untested[400:] == 3] = 0
    for factors in (unseen, untested):
        assert 0.5 < explicitness_score(*halves(CODES, factors)) < 1
    disjoint = FACTORS[:, 1:].copy()
    disjoint[400:] += 10
    assert np.isnan(explicitness_score(*halves(CODES, disjoint)))


def test_explicitness_constant_factors_are_left_out() -> None:
    """A factor with one value in either set is left out."""
    padded = FACTORS.copy()
    padded[400:, 1] = 1
    assert explicitness_score(*halves(CODES, padded)) == explicitness_score(*halves(CODES, FACTORS[:, :1]))
    assert np.isnan(explicitness_score(*halves(CODES, padded[:, 1:])))


def test_explicitness_two_rows_are_enough() -> None:
    """Two rows give a complete score."""
    codes, factors = np.array([[-1.0], [1.0]]), np.array([[0], [1]])
    assert explicitness_score(codes, factors, codes, factors) == 1


def test_explicitness_invalid_input_raises() -> None:
    """The error names the argument."""
    train, values, test, truth = halves(CODES)
    with pytest.raises(ValueError, match="codes, factors"):
        explicitness_score(train, values[1:], test, truth)
    with pytest.raises(ValueError, match=r"\(200, 1\)"):
        explicitness_score(train, values, test[:, :1], truth)
    with pytest.raises(ValueError, match="codes"):
        explicitness_score(np.full_like(train, np.nan), values, test, truth)
