"""Frechet distance of two sets of features, as two Gaussians."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root of a positive semi-definite matrix; what rounding made negative is 0."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def frechet_distance(a: Array, b: Array) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the Gaussians fitted to `a` and `b`.

    (Dowson, Landau 1982; on features of a network it is the FID of Heusel et al. 2017.) The trace of the
    root is that of the symmetric root(S_a) S_b root(S_a): real and exact where covariances are singular.
    It has a positive bias that falls with N: compare only distances with equal N and M.

    Args:
        a: (N, D) float, N > 1.
        b: (M, D) float, M > 1.

    Returns:
        >= 0, in squared units of the features; 0 only where both moments agree.

    Raises:
        ValueError: not two matrices of equal D > 0 with at least two rows, or values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2 or not a.shape[1]:
        raise ValueError(f"need (N, D) and (M, D) with N, M > 1 and D > 0, got {a.shape}, {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold values that are not finite")
    first, second = (np.asarray(part, np.float64) for part in (a, b))
    covariances = [np.cov(part, rowvar=False, ddof=1).reshape(a.shape[1], a.shape[1]) for part in (first, second)]
    root = _root(covariances[0])
    product = root @ covariances[1] @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    apart = ((first.mean(0) - second.mean(0)) ** 2).sum()
    return max(float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared), 0.0)
