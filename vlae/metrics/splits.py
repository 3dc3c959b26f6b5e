"""The best split of a tree's node over all thresholds, looking at few of them one by one.

Each latent's sorted rows are cut into bins at thresholds that separate values. Sums over bins, which a child node
gets by subtraction, tell the gain at the bins' edges exactly, and bound it inside: only bins that could hold the best
threshold are searched row by row. The answer is that of trying every threshold.
"""

import inspect
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

BINS = 128  # at most 256: bins are numbered in uint8
TIE = 1e-9  # relative difference of gains below which two latents are equally good
GAP = np.float32(1e-7)  # neighbours no further apart are one value, as in scikit-learn

Floats = NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` compiled by numba when it is first called, or as a part of what calls it."""
    jitted: Function = njit(nogil=True, error_model="numpy")(function)
    return jitted


def cached(*modules: ModuleType) -> Callable[[Function], Function]:
    """As `compiled`, and kept on disk for other processes if numba finds a folder to write to.

    Numba notices changes only in the file of the function itself. `modules` are the others that it calls compiled
    functions of: their source becomes part of the name it is kept under, so that no stale copy of them is used.
    """

    def decorate(function: Function) -> Function:
        try:
            source = "".join(inspect.getsource(module) for module in modules)
            function.__qualname__ += f"_{zlib.crc32(source.encode()):08x}"
            jitted: Function = njit(cache=True, nogil=True, error_model="numpy")(function)
        except (OSError, RuntimeError):  # no source, no folder
            return compiled(function)
        return jitted

    return decorate


class Binned(NamedTuple):
    """Codes (N, D) float32 and, for each latent, its rows in order of their value, cut into bins.

    columns (D, N) float32: the codes. order (D, N) int32: rows. values (D, N) float32: sorted. starts (D, BINS + 1)
    int32: first place of each bin in the order. wide (D, BINS) bool: could be split inside. by_row (N, D) and by_latent
    (D, N) uint8: bin of each code. counts (D, BINS) float64: rows.
    """

    columns: NDArray[np.float32]
    order: NDArray[np.int32]
    values: NDArray[np.float32]
    starts: NDArray[np.int32]
    wide: NDArray[np.bool_]
    by_row: NDArray[np.uint8]
    by_latent: NDArray[np.uint8]
    counts: Floats


class Sums(NamedTuple):
    """Of a node, per latent and bin (D, BINS) float64: gradients, those of the class's own rows, and rows."""

    gradients: Floats
    own: Floats
    counts: Floats


class Split(NamedTuple):
    """latent -1: none. Rows with a code up to the threshold go left: so many, with this sum of gradients."""

    latent: int
    threshold: float
    gain: float
    left: float
    left_sum: float


def binned(codes: NDArray[np.float32]) -> Binned:
    """Codes (N, D) float32, finite, sorted and cut into bins of about equal numbers of rows."""
    columns = np.ascontiguousarray(codes.T)
    order = np.argsort(columns, axis=1, kind="stable").astype(np.int32)
    values = np.take_along_axis(columns, order, axis=1)
    starts = np.full((len(columns), BINS + 1), len(codes), np.int32)
    wide = np.zeros((len(columns), BINS), np.bool_)
    by_latent = np.empty(columns.shape, np.uint8)
    _cut(order, values, starts, wide, by_latent)
    counts = np.diff(starts, axis=1).astype(np.float64)
    return Binned(columns, order, values, starts, wide, np.ascontiguousarray(by_latent.T), by_latent, counts)


@cached()
def _cut(
    order: NDArray[np.int32],
    values: NDArray[np.float32],
    starts: NDArray[np.int32],
    wide: NDArray[np.bool_],
    by_latent: NDArray[np.uint8],
) -> None:
    """A new bin begins where the last has its share of rows and the value changes."""
    latents, rows = order.shape
    share = (rows + BINS - 1) // BINS
    for j in range(latents):
        number, start = 0, 0
        starts[j, 0] = 0
        for i in range(rows):
            if i - start >= share and values[j, i] > values[j, i - 1] + GAP:
                number, start = number + 1, i
                starts[j, number] = i
            wide[j, number] = values[j, i] > values[j, start] + GAP
            by_latent[j, order[j, i]] = number


@compiled
def add_rows(
    sums: Sums, rows: NDArray[np.int32], by_row: NDArray[np.uint8], gradient: Floats, own: NDArray[np.bool_]
) -> None:
    """Fill the sums of the node that holds these rows."""
    sums.gradients[:] = 0
    sums.own[:] = 0
    sums.counts[:] = 0
    for row in rows:
        value = gradient[row]
        for j in range(by_row.shape[1]):
            cell = by_row[row, j]
            sums.gradients[j, cell] += value
            sums.counts[j, cell] += 1
        if own[row]:
            for j in range(by_row.shape[1]):
                sums.own[j, by_row[row, j]] += value


@compiled
def best_split(
    sums: Sums,
    data: Binned,
    gradient: Floats,
    nodes: NDArray[np.uint8],
    node: int,
    rows: int,
    total: float,
    draw: float,
) -> Split:
    """The split of `node` with the largest gain (decrease of the sum of squares), by `draw` among equally good latents.

    Args:
        sums: of the node.
        data: of all rows.
        gradient: (N,) what the tree is fitted to: positive in the class's own rows, negative in the others.
        nodes: (N,) where each row is.
        node: to be split.
        rows: in the node.
        total: of the gradient in the node.
        draw: in [0, 1).
    """
    latents = len(data.order)
    before = np.zeros((latents, BINS + 1, 2))  # rows and gradients left of each bin
    best = np.empty((latents, 5))  # per latent: score, rows and gradients left, bin or -1, threshold
    top = -1.0
    for j in range(latents):
        _edges(sums, j, before[j], best[j], rows, total)
        top = max(top, best[j, 0])
    for j in range(latents):
        for b in range(BINS):
            if data.wide[j, b] and sums.counts[j, b] > 1:
                bound = _bound(before[j, b], sums.counts[j, b], sums.gradients[j, b], sums.own[j, b], rows, total)
                if bound >= top * (1 - TIE):
                    _inside(data, j, b, before[j, b], best[j], gradient, nodes, node, rows, total)
                    top = max(top, best[j, 0])
    return _chosen(best, top, draw, data, nodes, node, rows)


@compiled
def _edges(sums: Sums, j: int, before: Floats, best: Floats, rows: int, total: float) -> None:
    """Try the edges of a latent's bins. A split's score is (its sum - what is expected)^2 / (left * right)."""
    mean = total / rows
    count, value, top = 0.0, 0.0, -1.0
    for b in range(BINS):
        before[b, 0], before[b, 1] = count, value
        excess = value - mean * count
        if excess * excess > top * count * (rows - count) and 0 < count < rows:
            top = excess * excess / (count * (rows - count))
            best[1], best[2], best[3] = count, value, b
        count += sums.counts[j, b]
        value += sums.gradients[j, b]
    best[0] = top


@compiled
def _bound(before: Floats, count: float, value: float, own: float, rows: int, total: float) -> float:
    """No split inside the bin has a larger score: its sum lies between those with all and none of the class's rows."""
    mean = total / rows
    start = before[1] - mean * before[0]
    up = start + own + max(0.0, -mean * count)
    down = start + (value - own) - max(0.0, mean * count)
    first, last = before[0] + 1, before[0] + count - 1
    furthest = max(abs(up), abs(down))
    return furthest * furthest / min(first * (rows - first), last * (rows - last))


@compiled
def _inside(
    data: Binned,
    j: int,
    b: int,
    before: Floats,
    best: Floats,
    gradient: Floats,
    nodes: NDArray[np.uint8],
    node: int,
    rows: int,
    total: float,
) -> None:
    """Try all thresholds between the node's rows in one bin."""
    mean = total / rows
    first, count, value = before[0], before[0], before[1]
    previous = np.float32(0)
    for i in range(data.starts[j, b], data.starts[j, b + 1]):
        row = data.order[j, i]
        if nodes[row] != node:
            continue
        current = data.values[j, i]
        excess = value - mean * count
        if count > first and excess * excess > best[0] * count * (rows - count) and current > previous + GAP:
            best[0] = excess * excess / (count * (rows - count))
            best[1], best[2], best[3] = count, value, -1
            best[4] = previous / 2.0 + current / 2.0
        previous = current
        count += 1
        value += gradient[row]


@compiled
def _chosen(
    best: Floats, top: float, draw: float, data: Binned, nodes: NDArray[np.uint8], node: int, rows: int
) -> Split:
    """One of the latents whose best score is the top one, all with the same chance."""
    if top < 0:
        return Split(-1, np.inf, 0.0, 0.0, 0.0)
    equal = 0
    for score in best[:, 0]:
        equal += score >= top * (1 - TIE)
    j, skip = 0, int(draw * equal)
    while best[j, 0] < top * (1 - TIE) or skip > 0:
        skip -= best[j, 0] >= top * (1 - TIE)
        j += 1
    threshold = best[j, 4]
    if best[j, 3] >= 0:
        threshold = _between(data, j, data.starts[j, int(best[j, 3])], nodes, node)
    return Split(j, threshold, best[j, 0] * rows, best[j, 1], best[j, 2])


@compiled
def _between(data: Binned, j: int, place: int, nodes: NDArray[np.uint8], node: int) -> float:
    """Middle between the node's last code before a place in the order and its first from there on."""
    left, right = place - 1, place
    while nodes[data.order[j, left]] != node:
        left -= 1
    while nodes[data.order[j, right]] != node:
        right += 1
    return data.values[j, left] / 2.0 + data.values[j, right] / 2.0  # type: ignore[no-any-return]
