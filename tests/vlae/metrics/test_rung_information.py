"""Information of whole rungs, against integrals and closed forms of Gaussians, and on constructed codes."""

import numpy as np
import pytest
from scipy.stats import norm

from vlae.metrics import rung_information, rung_mutual_information
from vlae.metrics._label_likelihoods import fit_discriminants
from vlae.metrics.rung_information import _mixture_log_likelihood


def gaussian_classes(separation: float, dims: int, count: int, sigma: float) -> tuple[np.ndarray, ...]:
    """Posteriors N(mean, sigma^2) whose means are N(+-separation, 1 - sigma^2) by class: z|v is N(+-s, 1)."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, count)
    means = rng.normal(size=(count, dims)) * np.sqrt(1 - sigma**2)
    means[:, 0] += np.where(labels, separation, -separation)
    samples = means + sigma * rng.normal(size=(count, dims))
    return samples, means, np.full((count, dims), np.log(sigma)), labels[:, None]


@pytest.mark.parametrize("separation", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dims", [1, 3])
def test_rung_information_agrees_with_integral(separation: float, dims: int) -> None:
    """I(z; v) of two unit Gaussians at +-s, by numerical integration."""
    grid = np.linspace(-12, 12, 20_001)
    up, down = (np.exp(-0.5 * (grid - s) ** 2) / np.sqrt(2 * np.pi) for s in (separation, -separation))
    mixture = (up + down) / 2
    exact = np.trapezoid((up * np.log(up / mixture) + down * np.log(down / mixture)) / 2, grid)
    result = rung_information(*gaussian_classes(separation, dims, 3000, 0.5))
    assert result[0] == pytest.approx(exact / np.log(2), abs=0.03)


def test_rung_information_circle_needs_the_block() -> None:
    """An angle in two latents together: each alone holds much less of it."""
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 16, 3000)
    means = np.stack([np.cos(angle * np.pi / 8), np.sin(angle * np.pi / 8)], axis=1)
    sigmas = np.full_like(means, np.log(0.03))
    samples = means + 0.03 * rng.normal(size=means.shape)
    block = rung_information(samples, means, sigmas, angle[:, None])[0]
    single = rung_information(samples[:, :1], means[:, :1], sigmas[:, :1], angle[:, None])[0]
    assert block > 0.98
    assert single < 0.85


def test_rung_information_collapsed_rung_is_zero() -> None:
    """A collapsed rung's means separate the classes, but by a thousandth of its noise."""
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    means = labels[:, None] * 1e-3
    samples = means + np.random.default_rng(1).normal(size=means.shape)
    assert rung_information(samples, means, np.zeros_like(means), labels[:, None])[0] < 0.01
    assert np.isnan(rung_information(samples, means, np.zeros_like(means), np.zeros((2000, 1), int))[0])


EDGES = norm.ppf(np.arange(1, 10) / 10)


def decile_likelihoods(t: np.ndarray, rho: float) -> np.ndarray:
    """P(v | t) of the decile v of a unit Gaussian whose correlation with the unit Gaussian t is rho: (n, 10)."""
    edges = np.concatenate([[-np.inf], EDGES, [np.inf]])
    return np.diff(norm.cdf((edges - rho * t[:, None]) / np.sqrt(1 - rho**2)), axis=1)


def decile_information(rho: float) -> float:
    """I(t; v) in nats, integrated over t."""
    grid = np.linspace(-9, 9, 8001)
    likelihoods = decile_likelihoods(grid, rho)
    inner = np.where(likelihoods > 0, likelihoods * np.log(np.maximum(likelihoods, 1e-300) * 10), 0).sum(1)
    return float(np.trapezoid(norm.pdf(grid) * inner, grid))


def gaussian_rung(dims: int, sigma: float, coupling: float, seed: int) -> tuple[np.ndarray, ...]:
    """q(z|x) = N(Ax, sigma^2) with x and z unit Gaussians, v the decile of a Gaussian correlated with x.

    Returns samples, means, log sigmas, factors, and the exact log P(v|z) / P(v) of each row.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3000, dims))
    turn = np.linalg.qr(rng.normal(size=(dims, dims)))[0]
    along = np.full(dims, dims**-0.5)
    values = np.digitize(coupling * x @ along + np.sqrt(1 - coupling**2) * rng.normal(size=3000), EDGES)
    means = np.sqrt(1 - sigma**2) * x @ turn.T
    samples = means + sigma * rng.normal(size=means.shape)
    likelihoods = decile_likelihoods(samples @ turn @ along, coupling * np.sqrt(1 - sigma**2))
    log_ratios = np.log(likelihoods[np.arange(3000), values] * 10)
    return samples, means, np.full_like(means, np.log(sigma)), values[:, None], log_ratios


def test_decile_integral_agrees_with_samples() -> None:
    """The integral is below the closed form and near its sampled mean."""
    for rho in (0.3, 0.9):
        assert 0.8 < decile_information(rho) / (-0.5 * np.log(1 - rho**2)) < 1
    log_ratios = np.concatenate([gaussian_rung(2, 0.3, 0.9, seed)[4] for seed in range(40)])
    exact = decile_information(0.9 * np.sqrt(1 - 0.3**2))
    assert log_ratios.mean() == pytest.approx(exact, abs=4 * log_ratios.std() / np.sqrt(len(log_ratios)))


@pytest.mark.parametrize("dims", [1, 2, 4])
@pytest.mark.parametrize(("sigma", "coupling"), [(0.7, 0.995), (0.3, 0.9), (0.1, 0.995)])
def test_rung_information_gaussian_is_within_two_percent(dims: int, sigma: float, coupling: float) -> None:
    """0.33 to 1.6 nats; the exact log ratios of the same rows take away what is chance in 3000 draws."""
    exact = decile_information(coupling * np.sqrt(1 - sigma**2))
    *rung, log_ratios = gaussian_rung(dims, sigma, coupling, 0)
    result = rung_mutual_information(*rung)[0] - (log_ratios.mean() - exact)
    assert 0.98 * exact < result < 1.003 * exact


@pytest.mark.parametrize("dims", [1, 2, 4])
@pytest.mark.parametrize(("sigma", "coupling"), [(0.7, 0.3), (0.3, 0.5)])
def test_rung_information_weak_gaussian_is_within_001_nats(dims: int, sigma: float, coupling: float) -> None:
    """Weak information is within a hundredth of a nat."""
    exact = decile_information(coupling * np.sqrt(1 - sigma**2))
    *rung, log_ratios = gaussian_rung(dims, sigma, coupling, 0)
    result = rung_mutual_information(*rung)[0] - (log_ratios.mean() - exact)
    assert exact - 0.01 < result < exact + 0.003


def test_rung_information_narrow_posteriors_are_held_out() -> None:
    """Narrow posteriors do not recognize their own samples."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2000, 8))
    factors = np.stack([rng.integers(0, size, 2000) for size in (2, 10)], axis=1)
    samples = means + 1e-3 * rng.normal(size=means.shape)
    assert (rung_mutual_information(samples, means, np.full_like(means, np.log(1e-3)), factors) < 0.01).all()


def test_rung_information_perfect_code_with_cycling_factor() -> None:
    """A perfect code has all information, even if its factor cycles along the rows."""
    factor = np.arange(2000)[:, None] % 10
    means = factor.astype(float)
    samples = means + 1e-3 * np.random.default_rng(0).normal(size=means.shape)
    log_ratios = rung_mutual_information(samples, means, np.full_like(means, np.log(1e-3)), factor)
    assert log_ratios[0] == pytest.approx(np.log(10), rel=0.01)
    assert rung_information(samples, means, np.full_like(means, np.log(1e-3)), factor)[0] > 0.99


def test_rung_information_duplicates_change_little() -> None:
    """Duplicated and inactive latents change little."""
    *rung, _ = gaussian_rung(2, 0.3, 0.9, 0)
    samples, means, log_sigmas, factors = rung
    noise = np.random.default_rng(1).normal(size=(3000, 4))
    once = rung_mutual_information(*rung)[0]
    twice = [np.concatenate([array, array], axis=1) for array in (samples, means, log_sigmas)]
    padded = [
        np.concatenate([array, extra], axis=1)
        for array, extra in ((samples, noise), (means, 0 * noise), (log_sigmas, 0 * noise))
    ]
    assert rung_mutual_information(*twice, factors)[0] == pytest.approx(once, rel=0.03)
    assert rung_mutual_information(*padded, factors)[0] == pytest.approx(once, rel=0.05)


def test_rung_information_constant_codes_are_zero() -> None:
    """Constant codes and a rung without latents have exactly 0."""
    factors = np.column_stack([np.arange(50) % 2, np.zeros(50, int)])
    for codes in (np.zeros((50, 2)), np.zeros((50, 0))):
        np.testing.assert_array_equal(rung_mutual_information(codes, codes, codes, factors), [0, np.nan])
        np.testing.assert_array_equal(rung_information(codes, codes, codes, factors), [0, np.nan])


def test_rung_information_invalid_input_raises() -> None:
    """The error names the argument and its shape."""
    codes, factors = np.zeros((10, 3)), np.zeros((10, 1), int)
    for metric in (rung_information, rung_mutual_information):
        with pytest.raises(ValueError, match=r"\(10, 3\), \(10, 2\), \(10, 3\)"):
            metric(codes, codes[:, :2], codes, factors)
        with pytest.raises(ValueError, match="codes, factors"):
            metric(codes, codes, codes, factors[:5])
        with pytest.raises(ValueError, match="log_sigmas"):
            metric(codes, codes, codes - np.inf, factors)


def test_mixture_weights_are_those_of_the_other_half() -> None:
    """Two experts, each right about one half: EM trusts the one that is wrong about the half that is evaluated."""
    half = np.arange(40) < 20
    likelihoods = np.stack([half, ~half], axis=1).astype(float)
    assert _mixture_log_likelihood(likelihoods, half) == pytest.approx(-np.log(20 + 2))


def test_rung_information_entropy_has_the_miller_correction() -> None:
    """The entropy of few rows of many uneven values: the information over its fraction of the entropy."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.arange(30), np.minimum(rng.geometric(0.2, 70) - 1, 29)])[:, None]
    means = values.astype(float)
    code = means, means, np.full_like(means, -3.0), values
    frequencies = np.bincount(values[:, 0]) / 100
    expected = -(frequencies * np.log(frequencies)).sum() + (30 - 1) / (2 * 100)
    assert expected < np.log(30)
    assert rung_mutual_information(*code)[0] / rung_information(*code)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("separation", "low", "high"), [(0.0, 0.0, 0.2), (3.0, 0.9, 1.0)])
def test_fit_discriminants_shrinks_means_by_chance(separation: float, low: float, high: float) -> None:
    """The means of ten classes of 30 rows differ by chance alone, unless the classes are separate."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 10
    samples = rng.normal(size=(300, 4)) + separation * rng.normal(size=(10, 4))[labels]
    fit = fit_discriminants(samples, labels, 10)
    means = np.stack([samples[labels == label].mean(0) for label in range(10)])
    along_axes = (means - samples.mean(0)) @ fit.axes
    assert low <= (fit.class_means**2).sum() / (along_axes**2).sum() <= high
