"""Discretization of codes, and mutual information of discrete variables by counting."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Factors, Floats

Indices = NDArray[np.intp]
Codes = NDArray[np.floating] | NDArray[np.integer]

# Less information, in nats, counts as 0, because rounding leaves some 1e-15 nats in a sum of entropies.
MIN_INFORMATION = 1e-12


class Labels(NamedTuple):
    """C discrete variables of N rows.

    Attributes:
        values: (C, N) intp, in 0..sizes[c] - 1.
        sizes: (C,) intp, an upper bound of the number of values of each variable.
    """

    values: Indices
    sizes: Indices


class PairwiseInformation(NamedTuple):
    """Mutual information of D variables with K others, in nats.

    Attributes:
        information: (D, K) float64.
        first_entropies: (D,) float64.
        second_entropies: (K,) float64.
    """

    information: Floats
    first_entropies: Floats
    second_entropies: Floats


def discretize(codes: Codes, bins: int) -> Labels:
    """Cut each latent into bins of equal width between its extremes.

    The edges are those of `numpy.histogram` on the dtype of the codes, because other edges move the rows that lie
    on them: up to a third of the rows where a latent takes few values. A latent whose range is too narrow for that
    many edges in its dtype is constant but for rounding; all its rows are in bin 0.

    Args:
        codes: Codes (N, D), float or int.
        bins: Number of bins per latent, at least 1.

    Returns:
        Bins (D, N) as labels.

    Raises:
        ValueError: There is no bin, or the range of a latent overflows its dtype.
    """
    if bins < 1:
        raise ValueError(f"bins: got {bins}. Pass at least 1.")
    columns = np.ascontiguousarray(codes.T)
    with np.errstate(over="ignore"):
        ranges = np.ptp(columns, axis=1)
    if not np.isfinite(ranges).all():
        latent = np.argmin(np.isfinite(ranges))
        raise ValueError(f"codes: the range of latent {latent} overflows {codes.dtype}. Pass a wider dtype.")
    values = np.zeros(columns.shape, np.intp)
    for j, column in enumerate(columns):
        values[j] = _digitize(column, bins)
    return Labels(values, np.full(len(columns), bins, np.intp))


def _digitize(column: Codes, bins: int) -> Indices:
    # Equals numpy.digitize on all edges but the last, minus 1, at a fifth of the time.
    try:
        edges = np.histogram_bin_edges(column, bins)
    except ValueError:  # because the dtype has fewer values than edges in the range; older numpy repeats edges
        return np.zeros(len(column), np.intp)
    if not (edges[1:] > edges[:-1]).all():
        return np.zeros(len(column), np.intp)
    width = (edges[-1] - edges[0]) / bins
    edges[-1] = np.inf
    index: Indices = np.minimum((column - edges[0]) / width, bins - 1).astype(np.intp)
    # The guess is off by 1 for a row near an edge, and by more where a bin holds few values of the dtype.
    while (move := (column >= edges[index + 1]).astype(np.intp) - (column < edges[index])).any():
        index += move
    return index


def factor_labels(factors: Factors) -> Labels:
    """Return the values of each factor (N, K) counted from 0, as labels (K, N); some labels may not occur."""
    values, sizes = np.empty(factors.T.shape, np.intp), np.empty(factors.shape[1], np.intp)
    for k, column in enumerate(factors.T):
        low, high = int(column.min()), int(column.max())
        if high - low < len(column):  # a narrow range serves as labels without sorting
            values[k], sizes[k] = column.astype(np.intp) - low, high - low + 1
        else:
            occurring, values[k] = np.unique(column, return_inverse=True)
            sizes[k] = len(occurring)
    return Labels(values, sizes)


def pairwise_information(first: Labels, second: Labels) -> PairwiseInformation:
    """Return I(x_j; y_k) = H(x_j) + H(y_k) - H(x_j, y_k) of all pairs, 0 below `MIN_INFORMATION`, and the entropies."""
    rows, total = first.values.shape[1], int(second.sizes.sum())
    starts = np.cumsum(second.sizes) - second.sizes
    shifted = second.values + starts[:, None]
    # One table per latent holds the counts of all factors side by side.
    joint = np.empty((len(first.values), len(starts)))
    for out, values, size in zip(joint, first.values, first.sizes, strict=True):
        table = np.bincount((values * total + shifted).ravel(), minlength=size * total)
        out[:] = np.add.reduceat(_sum_log(table.reshape(size, total)), starts)
    entropies = [
        np.log(rows) - np.array([_sum_log(np.bincount(values)[:, None])[0] for values in labels.values]) / rows
        for labels in (first, second)
    ]
    information = entropies[0][:, None] + entropies[1] - (np.log(rows) - joint / rows)
    return PairwiseInformation(np.where(information > MIN_INFORMATION, information, 0.0), *entropies)


def _sum_log(counts: Indices) -> Floats:
    """Return the sum of c log c over the rows of the counts."""
    return np.asarray((counts * np.log(np.maximum(counts, 1))).sum(axis=0))
