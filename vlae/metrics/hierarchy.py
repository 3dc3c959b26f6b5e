"""Is there a hierarchy? Scores of the rung x factor matrix, and its order against the factors' complexity."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Information = NDArray[np.floating]


def _checked(information: Information, threshold: float) -> NDArray[np.float64]:
    if information.ndim != 2 or not information.size:
        raise ValueError(f"information must be (L, K) with L, K > 0, got {information.shape}")
    if (information < 0).any() or np.isinf(information).any():
        raise ValueError("information must be finite and not negative")
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    return np.asarray(information, np.float64)


def _concentration(information: NDArray[np.float64], threshold: float) -> float:
    """Mean over the rows that carry something of max / sum, moved from [1/n, 1] to [0, 1]."""
    kept = information[information.max(axis=1, initial=0) >= threshold]
    kept = kept[:, information.max(axis=0, initial=0) >= threshold]
    columns = kept.shape[1]
    if not len(kept) or columns < 2:
        return float("nan")
    return float(((kept.max(axis=1) / kept.sum(axis=1)).mean() - 1 / columns) / (1 - 1 / columns))


def rung_modularity(information: Information, *, threshold: float = 0.01) -> float:
    """Does each rung tell of one factor? InfoM with whole rungs in place of latents (Hsu et al. 2023).

    (mean over rungs of max_k I_lk / sum_k I_lk - 1/K) / (1 - 1/K), over the rungs and the K factors that
    have at least one entry of `threshold`: a collapsed rung, or a factor that none tells, says nothing.

    Args:
        information: (L, K) float, shares I(z_l; v_k) / H(v_k) in [0, 1]; a NaN column is left out.
        threshold: share of the entropy, > 0.

    Returns:
        In [0, 1], higher is better; NaN if no rung is left, or fewer than two factors.

    Raises:
        ValueError: not a matrix with L, K > 0, or negative or infinite entries, or a threshold that is not above 0.
    """
    matrix = _checked(information, threshold)
    return _concentration(matrix[:, ~np.isnan(matrix).any(axis=0)], threshold)


def rung_compactness(information: Information, *, threshold: float = 0.01) -> float:
    """Is each factor held by one rung? InfoC with whole rungs in place of latents (Hsu et al. 2023).

    As `rung_modularity` with the roles of rungs and factors exchanged: a factor's largest rung over all
    its rungs. Information that two rungs share counts twice, so a duplicated code scores low.

    Args:
        information: (L, K) float, shares I(z_l; v_k) / H(v_k) in [0, 1]; a NaN column is left out.
        threshold: share of the entropy, > 0.

    Returns:
        In [0, 1], higher is better; NaN if no factor is left, or fewer than two rungs: where a single rung
        is active, that factors sit in one rung is no finding.

    Raises:
        ValueError: as `rung_modularity`.
    """
    matrix = _checked(information, threshold)
    return _concentration(matrix[:, ~np.isnan(matrix).any(axis=0)].T, threshold)


def level_centroids(information: Information, *, threshold: float = 0.01) -> NDArray[np.float64]:
    """Where on the ladder each factor sits: c_k = sum_l l I_lk / ((L-1) sum_l I_lk), (K,).

    Args:
        information: (L, K) float, rung 0 at the bottom.
        threshold: a factor of which no rung tells this much has no place.

    Returns:
        In [0, 1], 0 = wholly in the bottom rung; NaN where L == 1, the column has a NaN, or the factor is not told.

    Raises:
        ValueError: as `rung_modularity`.
    """
    matrix = _checked(information, threshold)
    levels = len(matrix)
    out = np.full(matrix.shape[1], np.nan)
    told = matrix.max(axis=0) >= threshold  # False for a NaN
    if levels > 1 and told.any():
        held = matrix[:, told]
        out[told] = np.arange(levels) @ held / ((levels - 1) * held.sum(axis=0))
    return out


def complexity_correlation(centroids: NDArray[np.floating], complexity: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of `level_centroids` (K,) with `factor_complexity` (K,): in [-1, 1].

    Over the factors for which neither is NaN. 1 = the more complex a factor, the higher it sits.

    Returns:
        NaN with fewer than three such factors, or where one of the two is the same for all.

    Raises:
        ValueError: not two vectors of the same length.
    """
    if centroids.ndim != 1 or centroids.shape != complexity.shape:
        raise ValueError(f"centroids and complexity must both be (K,), got {centroids.shape}, {complexity.shape}")
    both = np.isfinite(centroids) & np.isfinite(complexity)
    first, second = centroids[both], complexity[both]
    if both.sum() < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)
