"""Codes rotated by a random rotation are rotated back; codes without a best rotation stay as they are."""

import numpy as np
import pytest
from scipy.stats import special_ortho_group

from vlae.metrics import independent_axes, mig_score

FACTORS = np.random.default_rng(0).integers(0, 8, (4000, 3))
ALIGNED = (FACTORS - 3.5) / 2.3 + np.random.default_rng(1).normal(0, 0.05, FACTORS.shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scales", [(1, 1), (1, 0.3), (1, 1, 1), (1, 0.5, 0.2)])
def test_independent_axes_undo_a_rotation(scales: tuple[float, ...], seed: int) -> None:
    """Rotated codes are rotated back, at any scale of the latents."""
    dims = len(scales)
    rotation = special_ortho_group(dims, seed).rvs()
    aligned, factors = ALIGNED[:, :dims] * scales, FACTORS[:, :dims]
    codes = (aligned @ rotation.T + 5).astype(np.float32)
    result = independent_axes(codes)
    matched = np.abs(np.corrcoef(result.T, aligned.T)[:dims, dims:])
    assert np.sort(matched.max(axis=0)) == pytest.approx(1, abs=5e-3)
    assert mig_score(result, factors) > mig_score(aligned, factors) - 0.05


def test_independent_axes_separate_correlated_latents() -> None:
    """Two highly correlated latents are separated into their sources."""
    rng = np.random.default_rng(2)
    noise = 0.3 * rng.uniform(-1, 1, (4000, 1))
    codes = np.concatenate([ALIGNED[:, :1] + noise, ALIGNED[:, :1] - noise], axis=1)
    assert abs(np.corrcoef(codes.T)[0, 1]) > 0.9
    result = np.corrcoef(np.concatenate([independent_axes(codes), ALIGNED[:, :1], noise], axis=1).T)
    np.testing.assert_allclose(np.sort(np.abs(result[:2, 2:]), axis=0), [[0, 0], [1, 1]], atol=0.05)


def test_independent_axes_preserve_lengths() -> None:
    """The result is a rotation, and the same for the same codes."""
    codes = ALIGNED @ special_ortho_group(3, 0).rvs().T
    result = independent_axes(codes)
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), np.linalg.norm(codes - codes.mean(0), axis=1))
    np.testing.assert_array_equal(result, independent_axes(codes))


def test_independent_axes_leave_degenerate_codes() -> None:
    """Codes with fewer than two active, independent latents stay as they are."""
    inactive = np.concatenate([ALIGNED[:, :1], 1e-3 * ALIGNED[:, 1:]], axis=1)
    twice = np.concatenate([ALIGNED[:, :1], ALIGNED[:, :1]], axis=1)
    for codes in (ALIGNED[:, :1], inactive, twice, 0 * ALIGNED, ALIGNED[:1], ALIGNED[:, :0]):
        np.testing.assert_array_equal(independent_axes(codes), codes)


def test_independent_axes_leave_inactive_latents() -> None:
    """Inactive latents stay, and the others are rotated."""
    codes = np.insert(ALIGNED[:, :2] @ special_ortho_group(2, 1).rvs().T, 1, 1e-3 * ALIGNED[:, 2], axis=1)
    result = independent_axes(codes)
    np.testing.assert_array_equal(result[:, 1], codes[:, 1])
    assert mig_score(result, FACTORS[:, :2]) > mig_score(codes, FACTORS[:, :2]) + 0.3


def test_independent_axes_gaussian_codes_do_not_warn() -> None:
    """Gaussian codes have no best rotation and give no warning."""
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(500, 12))
    np.testing.assert_allclose(
        np.linalg.norm(independent_axes(codes), axis=1), np.linalg.norm(codes - codes.mean(0), axis=1)
    )


def test_independent_axes_invalid_codes_raise() -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match="codes"):
        independent_axes(np.full((4, 2), np.nan))


def test_independent_axes_need_several_starts() -> None:
    """Sources on which FastICA's first start (logcosh) ends at a rotation by about 45 degrees."""
    rng = np.random.default_rng(885)
    sources = np.stack([rng.uniform(-1, 1, 300), rng.exponential(size=300), rng.random(300) < 0.1], axis=1)
    sources = (sources - sources.mean(axis=0)) / sources.std(axis=0)
    result = independent_axes(sources @ special_ortho_group(3, 885).rvs().T)
    matched = np.abs(np.corrcoef(result.T, sources.T)[:3, 3:]).max(axis=0)
    np.testing.assert_allclose(matched, 1, atol=0.02)
