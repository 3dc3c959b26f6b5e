"""Scores from the mutual information of single latents with single factors."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Factors = NDArray[np.integer]


def check_rows(codes: Array, factors: Factors) -> None:
    """Refuse what no score is defined for.

    Raises:
        ValueError: not two matrices with as many rows, no rows, or codes that are not finite.
    """
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or not len(codes):
        raise ValueError(
            f"codes (N, D) and factors (N, K) must have the same N > 0, got {codes.shape}, {factors.shape}"
        )
    if not np.isfinite(codes).all():
        raise ValueError("codes hold values that are not finite")


def discretise(codes: Array, bins: int) -> NDArray[np.int64]:
    """Bin number of each code, (N, D) in 0..bins-1: equal widths between each latent's extremes.

    The edges are those of `numpy.histogram` on the array's own dtype: edges computed otherwise move
    rows that lie on them, up to a third of the rows where a latent takes few values.
    """
    columns = [np.digitize(column, np.histogram(column, bins)[1][:-1]) - 1 for column in codes.T]
    return np.stack(columns, axis=1).astype(np.int64)


def entropy(values: NDArray[np.integer]) -> float:
    """Entropy in nats of the empirical distribution of `values` (N,)."""
    counts = np.unique(values, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def mutual_information(codes: Array, factors: Factors, *, bins: int = 20) -> NDArray[np.float64]:
    """I(z_j; v_k) in nats by counting, (D, K), each latent cut into `bins` bins of equal width.

    Args:
        codes: (N, D) float.
        factors: (N, K) int.
        bins: per latent.

    Raises:
        ValueError: shapes that do not fit, or codes that are not finite.
    """
    check_rows(codes, factors)
    binned = discretise(codes, bins)
    out = np.empty((codes.shape[1], factors.shape[1]))
    for k in range(factors.shape[1]):
        _, values = np.unique(factors[:, k], return_inverse=True)
        size = int(values.max()) + 1
        for j in range(codes.shape[1]):
            joint = np.bincount(binned[:, j] * size + values, minlength=bins * size).reshape(bins, size) / len(codes)
            independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
            seen = joint > 0
            out[j, k] = (joint[seen] * np.log(joint[seen] / independent[seen])).sum()
    return np.maximum(out, 0)


def _varying(factors: Factors) -> Factors:
    """Factors that take more than one value; about the others there is nothing to know."""
    return factors[:, [len(np.unique(column)) > 1 for column in factors.T]]


def _gap(information: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest minus second largest along the last axis; the second is 0 where there is only one."""
    ordered = np.sort(information, axis=-1)
    return ordered[..., -1] - (ordered[..., -2] if information.shape[-1] > 1 else 0.0)


def mig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Mutual information gap: is each factor held by one latent?

    Mean over the factors of the gap between the two latents that know most of it, over its entropy
    (Chen et al. 2018, eq. 6, with the binning of Locatello et al. 2019).

    Args:
        codes: (N, D) float, posterior means.
        factors: (N, K) int; factors with one value are left out.
        bins: per latent. A perfect code stays below 1 where a factor has more values than bins.

    Raises:
        ValueError: shapes that do not fit, or codes that are not finite.

    Returns:
        In [0, 1], higher is better; NaN if no factor varies.
    """
    check_rows(codes, factors)
    varying = _varying(factors)
    if not varying.shape[1]:
        return float("nan")
    entropies = np.array([entropy(column) for column in varying.T])
    return float((_gap(mutual_information(codes, varying, bins=bins).T) / entropies).mean())


def mig_sup_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """The gap seen from the latents: does each active latent hold one factor? (Li et al. 2020)

    Mean over the latents with a variance above 0.01 of the gap between the two factors that it knows
    most of, each as a share of the factor's entropy.

    Returns:
        In [0, 1], higher is better; 0 if no latent is active; NaN if fewer than two factors vary.
    """
    check_rows(codes, factors)
    varying = _varying(factors)
    if varying.shape[1] < 2:
        return float("nan")
    entropies = np.array([entropy(column) for column in varying.T])
    shares = mutual_information(codes, varying, bins=bins) / entropies
    active = codes.var(axis=0) > 1e-2
    return float(_gap(shares[active]).mean()) if active.any() else 0.0
