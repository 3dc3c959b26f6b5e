"""What each rung holds: information about the factors, as a whole block of latents."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics.information import Array, Factors, check_rows, entropy

_WIDENINGS = (0.0, 0.1, 0.2, 0.4, 0.8)
_DOUBT = 0.01
_ROWS = 512


def rung_information(samples: Array, means: Array, log_sigmas: Array, factors: Factors) -> NDArray[np.float64]:
    """Share I(z; v_k) / H(v_k) of each factor that one rung's posterior samples tell, (K,).

    The posteriors of the other images, one Gaussian each, make the mixtures q(z) and q(z|v); a sample is
    judged by log q(z|v) - log q(z) without its own posterior, which it would always recognise. That is
    the score of a classifier on held-out data, so in expectation a lower bound of the information
    (Barber, Agakov 2003), and blocks of several latents need no binning. With few images in many
    dimensions neighbours are rare; the kernels are then widened by up to 0.8 prior standard deviations,
    whichever of five widths gives the best bound (a choice that can add a little), and one part in a
    hundred of the classifier's belief stays with the prior.

    Samples, not means: a collapsed rung's means can still separate what its samples cannot.

    Args:
        samples: (N, D), one draw of each posterior.
        means: (N, D) of the posteriors.
        log_sigmas: (N, D) of the posteriors.
        factors: (N, K) int.

    Returns:
        Each in [0, 1]; NaN for a factor with one value.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    check_rows(samples, factors)
    if means.shape != samples.shape or log_sigmas.shape != samples.shape:
        raise ValueError(f"samples, means, log_sigmas must agree: {samples.shape}, {means.shape}, {log_sigmas.shape}")
    labels = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    entropies = np.array([entropy(values) for values in labels])
    scores = [_held_out_scores(samples, means, log_sigmas, widening, labels) for widening in _WIDENINGS]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(entropies > 0, np.clip(1 + np.max(scores, axis=0) / entropies, 0, 1), np.nan)


def _held_out_scores(
    samples: Array, means: Array, log_sigmas: Array, widening: float, labels: list[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Mean log probability, nats, that the other images' posteriors give to each sample's label: (K,), <= 0."""
    onehot = [np.eye(int(values.max()) + 1)[values] for values in labels]
    total = np.zeros(len(labels))
    for start in range(0, len(samples), _ROWS):
        rows = slice(start, min(start + _ROWS, len(samples)))
        kernel = _held_out_kernel(samples, means, log_sigmas, widening, rows)
        for k, values in enumerate(labels):
            belief = (1 - _DOUBT) * (kernel @ onehot[k]) + _DOUBT * onehot[k].mean(0)
            total[k] += np.log(belief[np.arange(len(kernel)), values[rows]]).sum()
    return total / len(samples)


def _held_out_kernel(
    samples: Array, means: Array, log_sigmas: Array, widening: float, rows: slice
) -> NDArray[np.float64]:
    """Responsibility of each image's posterior for each sample in `rows`, its own left out: rows sum to 1."""
    precision = 1 / (np.exp(2.0 * log_sigmas.astype(np.float64)) + widening**2)
    z, mean = samples[rows].astype(np.float64), means.astype(np.float64)
    distance = z**2 @ precision.T - 2 * z @ (mean * precision).T + (mean**2 * precision).sum(1)
    log_density = 0.5 * np.log(precision).sum(1) - 0.5 * distance
    log_density[np.arange(len(z)), np.arange(rows.start, rows.stop)] = -np.inf
    kernel = np.exp(log_density - log_density.max(1, keepdims=True))
    return np.asarray(kernel / kernel.sum(1, keepdims=True))
