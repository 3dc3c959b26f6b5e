"""Metrics of the matrix of rung x factor information, and its order against the complexity of the factors."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from vlae.metrics._validation import Array, Floats


def rung_modularity(information: Array, *, threshold: float = 0.01) -> float:
    """Compute the rung modularity: does each rung hold one factor?

    InfoM with rungs in place of latents, (mean_l max_k I_lk / sum_k I_lk - 1/K) / (1 - 1/K), over the rungs and the
    K factors with at least one entry of `threshold`; collapsed rungs and factors in no rung are left out.

    Args:
        information: Normalized information (L, K) float, I(z_l; v_k) / H(v_k) in [0, 1]; columns with a NaN are left
            out.
        threshold: Smallest informative entry, above 0.

    Returns:
        In [0, 1], higher is better; NaN if no rung is left, or fewer than two factors.

    Raises:
        ValueError: The information is not a matrix with L, K > 0, has negative or infinite entries, or the threshold
            is not above 0.

    References:
        Hsu et al., "Disentanglement via Latent Quantization", NeurIPS 2023, section 4, arXiv:2305.18378.

    Example:
        >>> rung_modularity(np.array([[0.9, 0.0], [0.0, 0.4]]))
        1.0
    """
    matrix = _checked(information, threshold)
    return _concentration(matrix[:, ~np.isnan(matrix).any(axis=0)], threshold)


def rung_compactness(information: Array, *, threshold: float = 0.01) -> float:
    """Compute the rung compactness: is each factor held by one rung?

    InfoC with rungs in place of latents: `rung_modularity` of the transposed matrix. Information that two rungs share
    counts twice, so that a duplicated code scores low.

    Args:
        information: Normalized information (L, K) float, I(z_l; v_k) / H(v_k) in [0, 1]; columns with a NaN are left
            out.
        threshold: Smallest informative entry, above 0.

    Returns:
        In [0, 1], higher is better; NaN if no factor is left, or fewer than two rungs, because factors can only be in
        one rung where a single rung is active.

    Raises:
        ValueError: As `rung_modularity`.

    References:
        Hsu et al., "Disentanglement via Latent Quantization", NeurIPS 2023, section 4, arXiv:2305.18378.

    Example:
        >>> rung_compactness(np.array([[0.5, 0.0], [0.5, 0.4]]))
        0.5
    """
    matrix = _checked(information, threshold)
    return _concentration(matrix[:, ~np.isnan(matrix).any(axis=0)].T, threshold)


def factor_centroids(information: Array, *, threshold: float = 0.01) -> Floats:
    """Compute the centroid of each factor on the ladder, c_k = sum_l l I_lk / ((L - 1) sum_l I_lk).

    Args:
        information: Normalized information (L, K) float, rung 0 at the bottom.
        threshold: Smallest informative entry, above 0.

    Returns:
        (K,) in [0, 1], 0 = wholly in the bottom rung; NaN where L is 1, the column has a NaN, or no entry reaches the
        threshold.

    Raises:
        ValueError: As `rung_modularity`.

    Example:
        >>> factor_centroids(np.array([[0.5, 0.0], [0.5, 0.4]]))
        array([0.5, 1. ])
    """
    matrix = _checked(information, threshold)
    num_rungs = len(matrix)
    centroids = np.full(matrix.shape[1], np.nan)
    informative = matrix.max(axis=0) >= threshold  # False for a NaN
    if num_rungs > 1 and informative.any():
        held = matrix[:, informative]
        centroids[informative] = np.arange(num_rungs) @ held / ((num_rungs - 1) * held.sum(axis=0))
    return centroids


def centroid_complexity_spearman(centroids: NDArray[np.floating], complexity: NDArray[np.floating]) -> float:
    """Compute Spearman's rank correlation of the factors' centroids with their complexity.

    Args:
        centroids: Centroids (K,) float, by `factor_centroids`; NaN entries are left out.
        complexity: Complexity (K,) float, by `factor_complexity`; NaN entries are left out.

    Returns:
        In [-1, 1]; 1 = the more complex a factor, the higher its rung; NaN with fewer than three factors, or where
        either is the same for all.

    Raises:
        ValueError: The arrays are not vectors of the same length.

    Example:
        >>> round(centroid_complexity_spearman(np.array([0.0, 0.4, 1.0]), np.array([0.1, 0.5, 0.9])), 6)
        1.0
    """
    if centroids.ndim != 1 or centroids.shape != complexity.shape:
        raise ValueError(
            f"centroids, complexity: got shapes {centroids.shape}, {complexity.shape}. Pass (K,) for both."
        )
    both = np.isfinite(centroids) & np.isfinite(complexity)
    first, second = centroids[both], complexity[both]
    if both.sum() < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _checked(information: Array, threshold: float) -> Floats:
    if information.ndim != 2 or not information.size:
        raise ValueError(f"information: got shape {information.shape}. Pass (L, K) with L, K > 0.")
    if (information < 0).any() or np.isinf(information).any():
        raise ValueError("information: some entries are negative or infinite. Pass fractions of entropies.")
    if not threshold > 0:
        raise ValueError(f"threshold: got {threshold}. Pass a number above 0.")
    return np.asarray(information, np.float64)


def _concentration(information: Floats, threshold: float) -> float:
    """Return the mean over the informative rows of max / sum, rescaled from [1/n, 1] to [0, 1]."""
    kept = information[information.max(axis=1, initial=0) >= threshold]
    kept = kept[:, information.max(axis=0, initial=0) >= threshold]
    columns = kept.shape[1]
    if not len(kept) or columns < 2:
        return float("nan")
    return float(((kept.max(axis=1) / kept.sum(axis=1)).mean() - 1 / columns) / (1 - 1 / columns))
