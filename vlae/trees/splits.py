"""The best split of a tree's node over all thresholds, looking at few of them one by one.

Each latent's sorted rows are cut into bins at thresholds that separate values. Sums over bins, which a child node
gets by subtraction, tell the gain at the bins' edges exactly, and bound it inside: only bins that could hold the best
threshold are searched row by row. The answer is that of trying every threshold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.trees.presorted import BINS, GAP, Binned, Floats, compiled

TIE = 1e-9  # relative difference of gains below which two latents are equally good


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
    bound: float = furthest * furthest / min(first * (rows - first), last * (rows - last))
    return bound


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
    threshold: float = data.values[j, left] / 2.0 + data.values[j, right] / 2.0
    return threshold
