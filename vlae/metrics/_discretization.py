"""Codes cut into bins, and the information of binned codes by counting."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Numbers = NDArray[np.floating] | NDArray[np.integer]

# Sums of entropies are off by some 1e-15 nats; so little information is none.
ROUNDING = 1e-12


class Labels(NamedTuple):
    """C discrete variables: values (C, N) in 0..sizes[c]-1, sizes (C,)."""

    values: Indices
    sizes: Indices


class Counted(NamedTuple):
    """Nats: information (D, K) of D variables with K others, and the entropies (D,) and (K,) of each."""

    information: Floats
    first: Floats
    second: Floats


def bin_labels(codes: Numbers, bins: int) -> Labels:
    """Bin number of each code (N, D), as labels (D, N): equal widths between each latent's extremes.

    The edges are those of `numpy.histogram` on the array's own dtype: edges computed otherwise move
    rows that lie on them, up to a third of the rows where a latent takes few values. A latent whose
    range is too narrow for that many edges in its dtype, which numpy refuses, is constant but for
    rounding: all its rows are in bin 0.

    Raises:
        ValueError: fewer than one bin, or a latent whose range overflows its dtype.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    columns = np.ascontiguousarray(codes.T)
    with np.errstate(over="ignore"):
        ranges = np.ptp(columns, axis=1)
    if not np.isfinite(ranges).all():
        raise ValueError(f"the range of latent {np.argmin(np.isfinite(ranges))} overflows {codes.dtype}")
    values = np.zeros(columns.shape, np.intp)
    for j, column in enumerate(columns):
        values[j] = _binned(column, bins)
    return Labels(values, np.full(len(columns), bins, np.intp))


def _binned(column: Numbers, bins: int) -> Indices:
    """As `numpy.digitize` on the edges but the last, minus 1; five times as fast."""
    try:
        edges = np.histogram_bin_edges(column, bins)
    except ValueError:  # fewer numbers than edges between the extremes; older numpy repeats edges instead
        return np.zeros(len(column), np.intp)
    if not (edges[1:] > edges[:-1]).all():
        return np.zeros(len(column), np.intp)
    width = (edges[-1] - edges[0]) / bins
    edges[-1] = np.inf
    index: Indices = np.minimum((column - edges[0]) / width, bins - 1).astype(np.intp)
    # The guess is off by one where a row is about an edge, by more where a bin holds few numbers of the dtype.
    while (move := (column >= edges[index + 1]).astype(np.intp) - (column < edges[index])).any():
        index += move
    return index


def factor_labels(factors: NDArray[np.integer]) -> Labels:
    """Values of each factor (N, K) numbered from 0, as labels (K, N); some numbers may not occur."""
    labeled = [_numbered(column) for column in factors.T]
    values = np.array([values for values, _ in labeled], np.intp).reshape(len(labeled), len(factors))
    return Labels(values, np.array([size for _, size in labeled], np.intp))


def _numbered(column: NDArray[np.integer]) -> tuple[Indices, int]:
    if np.issubdtype(column.dtype, np.integer):
        low, high = int(column.min()), int(column.max())
        if high - low < len(column):  # as good as numbered, and nothing to sort
            return column.astype(np.intp) - low, high - low + 1
    values, numbers = np.unique(column, return_inverse=True)
    return numbers, len(values)


def count_information(first: Labels, second: Labels) -> Counted:
    """I(x_j; y_k) = H(x_j) + H(y_k) - H(x_j, y_k) of all pairs by counting, and the entropies.

    Less than 1e-12 nats, where rounding decides, is 0; so is what a constant tells.
    """
    rows, total = first.values.shape[1], int(second.sizes.sum())
    starts = np.cumsum(second.sizes) - second.sizes
    shifted = second.values + starts[:, None]
    # Of every latent, one table holds the counts with all the factors side by side.
    joint = np.empty((len(first.values), len(starts)))
    for out, values, size in zip(joint, first.values, first.sizes, strict=True):
        table = np.bincount((values * total + shifted).ravel(), minlength=size * total)
        out[:] = np.add.reduceat(_log_sum(table.reshape(size, total)), starts)
    alone = [
        np.array([_log_sum(np.bincount(values)[:, None])[0] for values in labels.values]) for labels in (first, second)
    ]
    entropies = [np.log(rows) - sums / rows for sums in alone]
    information = entropies[0][:, None] + entropies[1] - (np.log(rows) - joint / rows)
    return Counted(np.where(information > ROUNDING, information, 0.0), *entropies)


def _log_sum(counts: Indices) -> Floats:
    """Sum over the rows of c log c."""
    sums: Floats = (counts * np.log(np.maximum(counts, 1))).sum(axis=0)
    return sums
