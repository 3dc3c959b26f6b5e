"""Frechet distance between two sets of features, each described by a Gaussian."""

import numpy as np

from vlae.metrics._validation import Array, check_codes


def frechet_distance(a: Array, b: Array) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the Gaussians fitted to `a` and `b`.

    The trace of the root is that of the symmetric (S_a^(1/2) S_b S_a^(1/2))^(1/2), which is real and exact where
    covariances are singular. The distance has a positive bias that falls with N: compare only distances with equal N
    and M.

    Args:
        a: Features (N, D) float, N > 1, D > 0.
        b: Features (M, D) float, M > 1.

    Returns:
        At least 0, lower is better, in squared units of the features; 0 only where both moments agree.

    Raises:
        ValueError: The shapes do not fit, there are fewer than two rows, or features are not finite.

    References:
        Dowson and Landau, "The Frechet Distance between Multivariate Normal Distributions", Journal of Multivariate
        Analysis 12(3), 1982; on features of a network it is the FID of Heusel et al., "GANs Trained by a Two
        Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017, arXiv:1706.08500.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 2))
        >>> round(frechet_distance(features, features + [3, 4]), 6)
        25.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: got shapes {a.shape}, {b.shape}. Pass (N, D) and (M, D) with N, M > 1.")
    check_codes(a, min_latents=1)
    check_codes(b)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    dim = a.shape[1]
    first_covariance, second_covariance = (
        np.cov(features, rowvar=False, ddof=1).reshape(dim, dim) for features in (first, second)
    )
    # Rounding makes some eigenvalues of singular matrices negative.
    values, vectors = np.linalg.eigh(first_covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ second_covariance @ root
    root_trace = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    means = ((first.mean(0) - second.mean(0)) ** 2).sum()
    return max(float(means + np.trace(first_covariance) + np.trace(second_covariance) - 2 * root_trace), 0.0)
