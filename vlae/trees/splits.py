"""The best split of a node over all thresholds, of which few are tried one by one.

Sums over bins give the gain at the bins' edges exactly, and bound it inside; see `vlae.trees`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.trees.presorted import BINS, GAP, BinnedCodes, Floats, compiled

TIE = 1e-9  # relative difference of gains below which two latents are equally good


class Sums(NamedTuple):
    """Sums over a node's rows in each bin of each latent, (D, BINS) float64; positives: of the class's own rows."""

    gradients: Floats
    positives: Floats
    counts: Floats


class Split(NamedTuple):
    """Split of a node: rows with a code up to the threshold go left. Latent -1: the node has no split.

    `gain` is the decrease of the sum of squares, `left_sum` the sum of the gradients of the rows that go left.
    """

    latent: int
    threshold: float
    gain: float
    left_count: float
    left_sum: float


@compiled
def add_rows(
    sums: Sums, rows: NDArray[np.int32], by_row: NDArray[np.uint8], gradient: Floats, in_class: NDArray[np.bool_]
) -> None:
    """Fill the sums of the node that holds these rows."""
    sums.gradients[:] = 0
    sums.positives[:] = 0
    sums.counts[:] = 0
    for row in rows:
        value = gradient[row]
        for j in range(by_row.shape[1]):
            b = by_row[row, j]
            sums.gradients[j, b] += value
            sums.counts[j, b] += 1
        if in_class[row]:
            for j in range(by_row.shape[1]):
                sums.positives[j, by_row[row, j]] += value


@compiled
def best_split(
    sums: Sums,
    data: BinnedCodes,
    gradient: Floats,
    nodes: NDArray[np.uint8],
    node: int,
    rows: int,
    total: float,
    draw: float,
) -> Split:
    """Return the split of a node with the largest gain, at random among equally good latents.

    The split has latent -1 if all rows of the node have the same codes. `gradient` (N,) is positive in the class's own
    rows and negative in the others. `nodes` (N,) has each row's node, `total` is the gradient's sum in the node, and
    `draw` a random number in [0, 1).
    """
    latents = len(data.order)
    before = np.zeros((latents, BINS + 1, 2))  # rows and gradients left of each bin
    best = np.empty((latents, 5))  # per latent: score, rows and gradients left, bin or -1, threshold
    top = -1.0
    for j in range(latents):
        _try_edges(sums, j, before[j], best[j], rows, total)
        top = max(top, best[j, 0])
    for j in range(latents):
        for b in range(BINS):
            if data.splittable[j, b] and sums.counts[j, b] > 1:
                bound = _bound(before[j, b], sums.counts[j, b], sums.gradients[j, b], sums.positives[j, b], rows, total)
                if bound >= top * (1 - TIE):
                    _try_inside(data, j, b, before[j, b], best[j], gradient, nodes, node, rows, total)
                    top = max(top, best[j, 0])
    return _choose(best, top, draw, data, nodes, node, rows)


@compiled
def _try_edges(sums: Sums, j: int, before: Floats, best: Floats, rows: int, total: float) -> None:
    # A split's score is (its sum - its expected sum)^2 / (left rows * right rows).
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
def _bound(before: Floats, count: float, value: float, positive: float, rows: int, total: float) -> float:
    """Return an upper bound of the scores inside a bin, from the sums with all and none of the positive gradients."""
    mean = total / rows
    start = before[1] - mean * before[0]
    up = start + positive + max(0.0, -mean * count)
    down = start + (value - positive) - max(0.0, mean * count)
    first, last = before[0] + 1, before[0] + count - 1
    furthest = max(abs(up), abs(down))
    bound: float = furthest * furthest / min(first * (rows - first), last * (rows - last))
    return bound


@compiled
def _try_inside(
    data: BinnedCodes,
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
def _choose(
    best: Floats, top: float, draw: float, data: BinnedCodes, nodes: NDArray[np.uint8], node: int, rows: int
) -> Split:
    """Return the best split of a random latent among those whose best score is the top score."""
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
        # The threshold of a bin's edge is the middle between the node's last code before the edge and its first after.
        right = data.starts[j, int(best[j, 3])]
        left = right - 1
        while nodes[data.order[j, left]] != node:
            left -= 1
        while nodes[data.order[j, right]] != node:
            right += 1
        threshold = data.values[j, left] / 2.0 + data.values[j, right] / 2.0
    return Split(j, threshold, best[j, 0] * rows, best[j, 1], best[j, 2])
