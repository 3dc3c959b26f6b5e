"""Codes that were turned by a known rotation are turned back; what has no best rotation is left in peace."""

import numpy as np
import pytest
from scipy.stats import special_ortho_group

from vlae.metrics import independent_axes, mig_score

RNG = np.random.default_rng(0)
FACTORS = RNG.integers(0, 8, (4000, 3))
ALIGNED = (FACTORS - 3.5) / 2.3 + RNG.normal(0, 0.05, FACTORS.shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scales", [(1, 1), (1, 0.3), (1, 1, 1), (1, 0.5, 0.2)])
def test_what_was_turned_is_turned_back(scales: tuple[float, ...], seed: int) -> None:
    dims = len(scales)
    rotation = special_ortho_group(dims, seed).rvs()
    aligned, factors = ALIGNED[:, :dims] * scales, FACTORS[:, :dims]
    codes = (aligned @ rotation.T + 5).astype(np.float32)
    found = independent_axes(codes)
    matched = np.abs(np.corrcoef(found.T, aligned.T)[:dims, dims:])
    assert np.sort(matched.max(axis=0)) == pytest.approx(1, abs=5e-3)
    assert mig_score(found, factors) > mig_score(aligned, factors) - 0.05


def test_latents_that_tell_nearly_the_same_are_turned_apart() -> None:
    noise = 0.3 * RNG.uniform(-1, 1, (4000, 1))
    codes = np.concatenate([ALIGNED[:, :1] + noise, ALIGNED[:, :1] - noise], axis=1)
    assert abs(np.corrcoef(codes.T)[0, 1]) > 0.9
    found = np.corrcoef(np.concatenate([independent_axes(codes), ALIGNED[:, :1], noise], axis=1).T)
    np.testing.assert_allclose(np.sort(np.abs(found[:2, 2:]), axis=0), [[0, 0], [1, 1]], atol=0.05)


def test_it_is_a_rotation() -> None:
    codes = ALIGNED @ special_ortho_group(3, 0).rvs().T
    found = independent_axes(codes)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(codes - codes.mean(0), axis=1))
    np.testing.assert_array_equal(found, independent_axes(codes))


def test_what_cannot_be_turned() -> None:
    dead = np.concatenate([ALIGNED[:, :1], 1e-3 * ALIGNED[:, 1:]], axis=1)
    twice = np.concatenate([ALIGNED[:, :1], ALIGNED[:, :1]], axis=1)
    for codes in (ALIGNED[:, :1], dead, twice, 0 * ALIGNED, ALIGNED[:1], ALIGNED[:, :0]):
        np.testing.assert_array_equal(independent_axes(codes), codes)


def test_dead_latents_stay_and_the_others_turn() -> None:
    codes = np.insert(ALIGNED[:, :2] @ special_ortho_group(2, 1).rvs().T, 1, 1e-3 * ALIGNED[:, 2], axis=1)
    found = independent_axes(codes)
    np.testing.assert_array_equal(found[:, 1], codes[:, 1])
    assert mig_score(found, FACTORS[:, :2]) > mig_score(codes, FACTORS[:, :2]) + 0.3


def test_gaussian_codes_have_no_best_rotation_and_no_warning() -> None:
    codes = RNG.normal(size=(500, 12))
    np.testing.assert_allclose(
        np.linalg.norm(independent_axes(codes), axis=1), np.linalg.norm(codes - codes.mean(0), axis=1)
    )


def test_codes_that_are_none() -> None:
    with pytest.raises(ValueError, match="not finite"):
        independent_axes(np.full((4, 2), np.nan))
