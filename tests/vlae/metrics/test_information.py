"""Scores on codes whose answer is known: perfect, useless, duplicated; and by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from vlae.metrics import mig_score, mig_sup_score, mutual_information
from vlae.metrics.information import discretise, entropy

RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(0, 4, 4000), RNG.integers(0, 7, 4000), RNG.integers(0, 2, 4000)], axis=1)
NOISE = RNG.normal(size=(4000, 3)).astype(np.float32)
PERFECT = FACTORS.astype(np.float32)


def test_mutual_information_agrees_with_scikit_learn() -> None:
    codes = np.concatenate([PERFECT + 0.5 * NOISE, NOISE], axis=1)
    binned = discretise(codes, 20)
    expected = [[mutual_info_score(code, factor) for factor in FACTORS.T] for code in binned.T]
    np.testing.assert_allclose(mutual_information(codes, FACTORS), expected, atol=1e-9)


def test_bins_are_those_of_numpy_on_the_stored_dtype() -> None:
    codes = (np.arange(20, dtype=np.float32) / 7)[:, None]
    edges = np.histogram(codes[:, 0], 20)[1][:-1]
    np.testing.assert_array_equal(discretise(codes, 20)[:, 0], np.digitize(codes[:, 0], edges) - 1)
    assert set(discretise(codes, 20)[:, 0]) == set(range(20))


def test_mig() -> None:
    assert mig_score(PERFECT, FACTORS) == pytest.approx(1, abs=0.01)
    assert mig_score(NOISE, FACTORS) < 0.02
    assert mig_score(np.concatenate([PERFECT, PERFECT], axis=1), FACTORS) == pytest.approx(0)
    assert mig_score(np.zeros((4000, 3), np.float32), FACTORS) == 0
    assert mig_score(PERFECT[:, :1], FACTORS[:, :1]) == pytest.approx(1)
    assert np.isnan(mig_score(NOISE, np.zeros((4000, 1), int)))
    assert mig_score(PERFECT, np.column_stack([FACTORS, np.zeros(4000, int)])) == pytest.approx(1, abs=0.01)


def test_mig_by_hand() -> None:
    """Two latents that hold I and J nats of a factor of entropy H score (I - J) / H."""
    factor = np.repeat(np.arange(4), 1000)[:, None]
    codes = np.stack([factor[:, 0] // 2, (factor[:, 0] > 2).astype(int)], axis=1).astype(np.float32)
    first, second = np.log(2), entropy(codes[:, 1].astype(int))
    assert mig_score(codes, factor) == pytest.approx((first - second) / np.log(4))


def test_mig_sup() -> None:
    assert mig_sup_score(PERFECT, FACTORS) == pytest.approx(1, abs=0.01)
    assert mig_sup_score(NOISE, FACTORS) < 0.02
    # Duplicates do not hurt it, dead latents are left out, and a latent that mixes two factors does hurt.
    assert mig_sup_score(np.concatenate([PERFECT, PERFECT, 0 * PERFECT], axis=1), FACTORS) == pytest.approx(1, abs=0.01)
    both = (FACTORS[:, :1] * 2 + FACTORS[:, 2:]).astype(np.float32)
    assert mig_sup_score(both, FACTORS[:, [0, 2]]) < 0.1
    assert mig_sup_score(0 * PERFECT, FACTORS) == 0
    assert np.isnan(mig_sup_score(PERFECT, FACTORS[:, :1]))


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (NOISE[:10], FACTORS, "same N"),
        (NOISE[:, 0], FACTORS, "same N"),
        (NOISE[:0], FACTORS[:0], "same N"),
        (np.full((4000, 2), np.nan), FACTORS, "not finite"),
    ],
)
def test_bad_input_is_named(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    for score in (mig_score, mig_sup_score, mutual_information):
        with pytest.raises(ValueError, match=message):
            score(codes, factors)
