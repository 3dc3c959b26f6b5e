"""Probes on perfect, rotated, circular, useless, duplicated and collapsed codes."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from vlae.metrics import RungProbes, probe_accuracy, probe_rungs

N = 1200
FACTORS = np.random.default_rng(0).integers((4, 3, 6), size=(N, 3))
NOISE = np.random.default_rng(1).normal(size=(N, 8))


def accuracy(codes: np.ndarray, factors: np.ndarray = FACTORS, seed: int = 0) -> np.ndarray:
    return probe_accuracy(codes[:800], factors[:800], codes[800:], factors[800:], seed=seed)


def test_probe_reads_rotated_and_circular_codes() -> None:
    """Perfect, rotated and circular codes are read beside eight inactive latents."""
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotated = (FACTORS / FACTORS.std(0) + 0.03 * NOISE[:, :3]) @ turn
    np.testing.assert_allclose(accuracy(np.concatenate([FACTORS, NOISE], axis=1)), 1, atol=0.01)
    np.testing.assert_allclose(accuracy(np.concatenate([rotated, NOISE], axis=1)), 1, atol=0.03)
    angle = FACTORS[:, 2] * np.pi / 3
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.05 * NOISE[:, :2]
    assert accuracy(np.concatenate([circle, NOISE], axis=1))[2] > 0.97


def test_probe_reads_nonlinear_codes_by_trees() -> None:
    """Same mean for both values: only the product of two latents separates them."""
    agree = (NOISE[:, 0] * NOISE[:, 1] > 0).astype(int)[:, None]
    assert accuracy(NOISE[:, :2], agree)[0] > 0.85


def test_probe_useless_codes_are_at_chance() -> None:
    """Noise, constant codes and no codes are at 0."""
    assert (np.abs(accuracy(NOISE)) < 0.12).all()
    assert (np.abs(accuracy(np.zeros((N, 2)))) < 0.12).all()
    np.testing.assert_array_equal(accuracy(np.zeros((N, 0))), 0)


def test_probe_chance_is_the_commonest_train_value() -> None:
    """A constant prediction scores 0 however uneven the factor."""
    rng = np.random.default_rng(2)
    uneven = (rng.random((N, 1)) < 0.2).astype(int)
    dummy = DummyClassifier().fit(NOISE[:800], uneven[:800, 0]).score(NOISE[800:], uneven[800:, 0])
    half = np.where(rng.random(N) < 0.5, uneven[:, 0], 0)[:, None].astype(float)
    result = accuracy(half, uneven)[0]
    raw = ((half[800:, 0] > 0) == uneven[800:, 0]).mean()
    assert result == pytest.approx((raw - dummy) / (1 - dummy))


def test_probe_seed_decides_and_threads_do_not() -> None:
    """The seed decides, threads do not, and constant factors are NaN."""
    codes = FACTORS + 0.8 * NOISE[:, :3]
    split = (codes[:800], FACTORS[:800], codes[800:], FACTORS[800:])
    np.testing.assert_array_equal(accuracy(codes, seed=3), probe_accuracy(*split, seed=3, n_jobs=2))
    assert (accuracy(codes, seed=3) != accuracy(codes, seed=4)).any()
    padded = FACTORS.copy()
    padded[:, 0], padded[800:, 1] = 2, 1
    np.testing.assert_array_equal(np.isnan(accuracy(codes, padded)), [True, True, False])


def probes(rungs: list[np.ndarray]) -> RungProbes:
    arrays = [[rung[:800] for rung in rungs], FACTORS[:800], [rung[800:] for rung in rungs], FACTORS[800:]]
    return probe_rungs(*arrays, seed=0)


def test_probe_rungs_with_separate_factors() -> None:
    """Each rung loses its own factors and no others."""
    result = probes([FACTORS[:, :1] + 0.01 * NOISE[:, :1], FACTORS[:, 1:] + 0.01 * NOISE[:, 1:3]])
    assert result.single.shape == result.leave_one_out.shape == result.probe_drop.shape == (2, 3)
    np.testing.assert_allclose(result.all, 1, atol=0.02)
    np.testing.assert_allclose(result.probe_drop, [[1, 0, 0], [0, 1, 1]], atol=0.12)
    np.testing.assert_array_equal(result.single[0], result.leave_one_out[1])
    assert result.upper_rung_gain == pytest.approx(2 / 3, abs=0.05)


def test_probe_rungs_redundant_rungs_have_no_drop() -> None:
    """Without a duplicated or collapsed rung nothing is lost."""
    code = FACTORS + 0.01 * NOISE[:, :3]
    result = probes([code, code, NOISE[:, 3:5]])
    np.testing.assert_allclose(result.probe_drop, 0, atol=0.02)
    np.testing.assert_allclose(result.single, [[1] * 3, [1] * 3, [0] * 3], atol=0.12)
    assert result.upper_rung_gain == pytest.approx(0, abs=0.02)


def test_probe_rungs_single_rung_is_all() -> None:
    """Without the only rung everything is lost."""
    result = probes([FACTORS.astype(float)])
    np.testing.assert_array_equal(result.leave_one_out, np.zeros((1, 3)))
    np.testing.assert_array_equal(result.probe_drop[0], result.all)
    assert result.upper_rung_gain == 0


def test_upper_rung_gain_agrees_with_formula() -> None:
    """The gain is the fraction that the bottom rung lacks; NaN for noise."""
    single, both = np.array([[0.2, 0.4, np.nan], [0.5, 0.1, np.nan]]), np.array([0.6, 0.4, np.nan])
    assert RungProbes(single, both, single[::-1]).upper_rung_gain == pytest.approx(0.4)
    assert np.isnan(RungProbes(single, 0 * both, single).upper_rung_gain)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (NOISE[:9, :3], FACTORS[:8], r"\(9, 3\), \(8, 3\)"),
        (NOISE[:9, :2], FACTORS[:9], r"\(9, 2\), \(400, 3\)"),
        (NOISE[:9, :3], FACTORS[:9, :2], r"factors \(9, 2\), \(400, 3\)"),
        (np.full((9, 3), np.inf), FACTORS[:9], "codes"),
        (NOISE[:4, :3], FACTORS[:4], r"train_codes.*\(4, 3\)"),
    ],
)
def test_probe_invalid_codes_raise(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    """The error names the argument and its shape."""
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
def test_probe_rungs_invalid_rungs_raise(train: list[np.ndarray], test: list[np.ndarray]) -> None:
    """The error names the shapes of the rungs."""
    with pytest.raises(ValueError, match="train_rungs"):
        probe_rungs(train, FACTORS, test, FACTORS, seed=0)


def test_probe_factor_may_cycle_along_the_rows() -> None:
    factors = np.arange(N)[:, None] % 5
    np.testing.assert_allclose(accuracy(factors + 0.01 * NOISE[:, :1], factors), 1, atol=0.01)
