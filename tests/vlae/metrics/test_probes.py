"""Probes on codes whose answer is known: perfect, rotated, circular, useless, duplicated, collapsed."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from vlae.metrics import RungProbes, probe_accuracy, probe_rungs

RNG = np.random.default_rng(0)
N = 1200
FACTORS = np.stack([RNG.integers(0, 4, N), RNG.integers(0, 3, N), RNG.integers(0, 6, N)], axis=1)
NOISE = RNG.normal(size=(N, 8))


def accuracy(codes: np.ndarray, factors: np.ndarray = FACTORS, seed: int = 0) -> np.ndarray:
    return probe_accuracy(codes[:800], factors[:800], codes[800:], factors[800:], seed=seed)


def test_perfect_rotated_and_circular_codes_are_read_in_spite_of_dead_latents() -> None:
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    rotated = (FACTORS / FACTORS.std(0) + 0.03 * NOISE[:, :3]) @ turn
    np.testing.assert_allclose(accuracy(np.concatenate([FACTORS, NOISE], axis=1)), 1, atol=0.01)
    np.testing.assert_allclose(accuracy(np.concatenate([rotated, NOISE], axis=1)), 1, atol=0.03)
    angle = FACTORS[:, 2] * np.pi / 3
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.05 * NOISE[:, :2]
    assert accuracy(np.concatenate([circle, NOISE], axis=1))[2] > 0.97


def test_what_is_not_linear_is_read_by_the_trees() -> None:
    """Same mean for both values: only the product of two latents tells them apart."""
    agree = (NOISE[:, 0] * NOISE[:, 1] > 0).astype(int)[:, None]
    assert accuracy(NOISE[:, :2], agree)[0] > 0.85


def test_useless_codes_are_at_chance() -> None:
    assert (np.abs(accuracy(NOISE)) < 0.12).all()
    assert (np.abs(accuracy(np.zeros((N, 2)))) < 0.12).all()
    np.testing.assert_array_equal(accuracy(np.zeros((N, 0))), 0)


def test_chance_is_that_of_the_commonest_train_value() -> None:
    """A constant answer scores 0 however uneven the factor; half of what is left to gain scores a half."""
    uneven = (RNG.random((N, 1)) < 0.2).astype(int)
    dummy = DummyClassifier().fit(NOISE[:800], uneven[:800, 0]).score(NOISE[800:], uneven[800:, 0])
    half = np.where(RNG.random(N) < 0.5, uneven[:, 0], 0)[:, None].astype(float)
    found = accuracy(half, uneven)[0]
    right = ((half[800:, 0] > 0) == uneven[800:, 0]).mean()
    assert found == pytest.approx((right - dummy) / (1 - dummy))


def test_seed_threads_and_constant_factors() -> None:
    codes = FACTORS + 0.8 * NOISE[:, :3]
    split = (codes[:800], FACTORS[:800], codes[800:], FACTORS[800:])
    np.testing.assert_array_equal(accuracy(codes, seed=3), probe_accuracy(*split, seed=3, n_jobs=2))
    assert (accuracy(codes, seed=3) != accuracy(codes, seed=4)).any()
    still = FACTORS.copy()
    still[:, 0], still[800:, 1] = 2, 1
    np.testing.assert_array_equal(np.isnan(accuracy(codes, still)), [True, True, False])


def probes(rungs: list[np.ndarray]) -> RungProbes:
    parts = [[rung[:800] for rung in rungs], FACTORS[:800], [rung[800:] for rung in rungs], FACTORS[800:]]
    return probe_rungs(*parts, seed=0)


def test_each_rung_holds_its_own() -> None:
    found = probes([FACTORS[:, :1] + 0.01 * NOISE[:, :1], FACTORS[:, 1:] + 0.01 * NOISE[:, 1:3]])
    assert found.alone.shape == found.without.shape == found.unique_information.shape == (2, 3)
    np.testing.assert_allclose(found.whole, 1, atol=0.02)
    np.testing.assert_allclose(found.unique_information, [[1, 0, 0], [0, 1, 1]], atol=0.12)
    np.testing.assert_array_equal(found.alone[0], found.without[1])
    assert found.upper_rung_gain == pytest.approx(2 / 3, abs=0.05)


def test_duplicated_and_collapsed_rungs_are_not_unique() -> None:
    code = FACTORS + 0.01 * NOISE[:, :3]
    found = probes([code, code, NOISE[:, 3:5]])
    np.testing.assert_allclose(found.unique_information, 0, atol=0.02)
    np.testing.assert_allclose(found.alone, [[1] * 3, [1] * 3, [0] * 3], atol=0.12)
    assert found.upper_rung_gain == pytest.approx(0, abs=0.02)


def test_one_rung_is_all_there_is() -> None:
    found = probes([FACTORS.astype(float)])
    np.testing.assert_array_equal(found.without, np.zeros((1, 3)))
    np.testing.assert_array_equal(found.unique_information[0], found.whole)
    assert found.upper_rung_gain == 0


def test_upper_share_by_hand() -> None:
    alone, whole = np.array([[0.2, 0.4, np.nan], [0.5, 0.1, np.nan]]), np.array([0.6, 0.4, np.nan])
    assert RungProbes(alone, whole, alone[::-1]).upper_rung_gain == pytest.approx(0.4)
    assert np.isnan(RungProbes(alone, 0 * whole, alone).upper_rung_gain)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (NOISE[:9, :3], FACTORS[:8], r"same N > 0, got \(9, 3\), \(8, 3\)"),
        (NOISE[:9, :2], FACTORS[:9], r"agree but for N, got codes \(9, 2\), \(400, 3\)"),
        (NOISE[:9, :3], FACTORS[:9, :2], r"factors \(9, 2\), \(400, 3\)"),
        (np.full((9, 3), np.inf), FACTORS[:9], "not finite"),
        (NOISE[:4, :3], FACTORS[:4], r"at least 5 train rows, got \(4, 3\)"),
    ],
)
def test_bad_codes_are_named(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe_accuracy(codes, factors, NOISE[800:, :3], FACTORS[800:], seed=0)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([], []),
        ([NOISE], [NOISE, NOISE]),
        ([NOISE], [NOISE[:, :2]]),
        ([NOISE, NOISE[:5]], [NOISE, NOISE]),
        ([NOISE[0]], [NOISE[0]]),
    ],
)
def test_bad_rungs_are_named(train: list[np.ndarray], test: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"rungs .* must agree, got"):
        probe_rungs(train, FACTORS, test, FACTORS, seed=0)
