"""Explicitness against scikit-learn, and on input with a known answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.explicitness import explicitness_score

GOLDEN = json.loads((Path(__file__).parent / "golden" / "explicitness.json").read_text())
RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(0, size, 600) for size in (2, 4)], axis=1)
CODES = FACTORS + RNG.normal(0, 0.6, (600, 2))


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:400], factors[:400], codes[400:], factors[400:]


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name: str) -> None:
    data = representation(name)
    found = explicitness_score(data.train_codes, data.train_factors, data.test_codes, data.test_factors)
    assert found == pytest.approx(GOLDEN[name]["explicitness"], abs=2e-3)


def test_one_latent_and_a_binary_factor_give_the_rank_statistic() -> None:
    """The regression is monotone in its only latent: the area is that of the latent itself."""
    test, truth = CODES[400:, 0], FACTORS[400:, 0]
    ones, zeros = test[truth == 1], test[truth == 0]
    expected = mannwhitneyu(ones, zeros).statistic / len(ones) / len(zeros)
    assert explicitness_score(*halves(CODES[:, :1], FACTORS[:, :1])) == pytest.approx(expected)


def test_scale_shift_and_constant_latents_do_not_matter() -> None:
    plain = explicitness_score(*halves(CODES))
    assert explicitness_score(*halves(CODES * np.array([1e-3, 1e3]) - 7)) == pytest.approx(plain, abs=1e-3)
    dead = np.concatenate([CODES, np.full((600, 3), 0.1)], axis=1)
    assert explicitness_score(*halves(dead)) == pytest.approx(plain, abs=1e-3)
    assert explicitness_score(*halves(np.zeros((600, 2)))) == 0.5


def test_values_are_names() -> None:
    assert explicitness_score(*halves(CODES, 9 - 3 * FACTORS)) == pytest.approx(
        explicitness_score(*halves(CODES)), abs=1e-3
    )


def test_values_that_one_side_lacks() -> None:
    """What was never seen in training counts as the rest; what is never asked is left out."""
    unseen, unasked = FACTORS[:, 1:].copy(), FACTORS[:, 1:].copy()
    unseen[:400][unseen[:400] == 3] = 0
    unasked[400:][unasked[400:] == 3] = 0
    for factors in (unseen, unasked):
        assert 0.5 < explicitness_score(*halves(CODES, factors)) < 1
    apart = FACTORS[:, 1:].copy()
    apart[400:] += 10
    assert np.isnan(explicitness_score(*halves(CODES, apart)))


def test_constant_factors_are_left_out() -> None:
    still = FACTORS.copy()
    still[400:, 1] = 1
    assert explicitness_score(*halves(CODES, still)) == explicitness_score(*halves(CODES, FACTORS[:, :1]))
    assert np.isnan(explicitness_score(*halves(CODES, still[:, 1:])))


def test_two_rows_are_enough() -> None:
    codes, factors = np.array([[-1.0], [1.0]]), np.array([[0], [1]])
    assert explicitness_score(codes, factors, codes, factors) == 1


def test_refuses() -> None:
    train, values, test, truth = halves(CODES)
    with pytest.raises(ValueError, match="same N"):
        explicitness_score(train, values[1:], test, truth)
    with pytest.raises(ValueError, match="must agree"):
        explicitness_score(train, values, test[:, :1], truth)
    with pytest.raises(ValueError, match="not finite"):
        explicitness_score(np.full_like(train, np.nan), values, test, truth)
