"""Scores on codes whose answer is known: perfect, useless, duplicated; and by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from vlae.metrics import mig_score, mig_sup_score, mutual_information, rung_information
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


def gaussian_classes(separation: float, dims: int, count: int, sigma: float) -> tuple[np.ndarray, ...]:
    """Posteriors N(mean, sigma^2) whose means are N(+-separation, 1 - sigma^2) by class: z|v is N(+-s, 1)."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, count)
    means = rng.normal(size=(count, dims)) * np.sqrt(1 - sigma**2)
    means[:, 0] += np.where(labels, separation, -separation)
    samples = means + sigma * rng.normal(size=(count, dims))
    return samples, means, np.full((count, dims), np.log(sigma)), labels[:, None]


@pytest.mark.parametrize("separation", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dims", [1, 3])
def test_rung_information_against_the_integral(separation: float, dims: int) -> None:
    """I(z; v) of two unit Gaussians at +-s, by numerical integration."""
    grid = np.linspace(-12, 12, 20_001)
    up, down = (np.exp(-0.5 * (grid - s) ** 2) / np.sqrt(2 * np.pi) for s in (separation, -separation))
    mixture = (up + down) / 2
    exact = np.trapezoid((up * np.log(up / mixture) + down * np.log(down / mixture)) / 2, grid)
    found = rung_information(
        *gaussian_classes(separation, dims, 4000, 0.5)[:3], gaussian_classes(separation, dims, 4000, 0.5)[3]
    )
    assert found[0] == pytest.approx(exact / np.log(2), abs=0.03)


def test_rung_information_of_a_circle_needs_the_block() -> None:
    """An angle held by two latents together: each alone tells much less of it."""
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 16, 3000)
    means = np.stack([np.cos(angle * np.pi / 8), np.sin(angle * np.pi / 8)], axis=1)
    sigmas = np.full_like(means, np.log(0.03))
    samples = means + 0.03 * rng.normal(size=means.shape)
    together = rung_information(samples, means, sigmas, angle[:, None])[0]
    alone = rung_information(samples[:, :1], means[:, :1], sigmas[:, :1], angle[:, None])[0]
    assert together > 0.98
    assert alone < 0.85


def test_rung_information_ignores_what_the_samples_cannot_show() -> None:
    """A collapsed rung's means separate the classes, but by a thousandth of its noise."""
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    means = labels[:, None] * 1e-3
    samples = means + np.random.default_rng(1).normal(size=means.shape)
    assert rung_information(samples, means, np.zeros_like(means), labels[:, None])[0] < 0.01
    assert np.isnan(rung_information(samples, means, np.zeros_like(means), np.zeros((2000, 1), int))[0])


def test_rung_information_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must agree"):
        rung_information(NOISE, NOISE[:, :2], NOISE, FACTORS)
