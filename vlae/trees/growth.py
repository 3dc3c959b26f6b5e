"""One regression tree on gradients, grown in place, node by node."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.trees.presorted import BINS, Binned, Floats, compiled
from vlae.trees.splits import Sums, add_rows, best_split

DEPTH = 3
INNER, NODES = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
EPSILON = float(np.finfo(np.float64).eps)


class Workspace(NamedTuple):
    """What growing one tree needs, used again for the next.

    nodes (N,) uint8: where each row is; node n has children 2n + 1, 2n + 2. rows, spare (N,) int32: grouped by node.
    ends (NODES, 2) int64: the node's group. totals (NODES, 2): sum of the gradient and of its squared distances from
    the mean. latents (INNER,) int64, thresholds (INNER,): splits. leaves (NODES,): values. sums: of four nodes.
    slots (NODES,) int64: which of the four.
    """

    nodes: NDArray[np.uint8]
    rows: NDArray[np.int32]
    spare: NDArray[np.int32]
    ends: NDArray[np.int64]
    totals: Floats
    latents: NDArray[np.int64]
    thresholds: Floats
    leaves: Floats
    sums: tuple[Sums, Sums, Sums, Sums]
    slots: NDArray[np.int64]


def empty_work(latents: int, rows: int) -> Workspace:
    """Room for trees on so many latents and train rows."""
    sums = (_no_sums(latents), _no_sums(latents), _no_sums(latents), _no_sums(latents))
    return Workspace(
        np.zeros(rows, np.uint8),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.zeros((NODES, 2), np.int64),
        np.zeros((NODES, 2)),
        np.zeros(INNER, np.int64),
        np.zeros(INNER),
        np.zeros(NODES),
        sums,
        np.zeros(NODES, np.int64),
    )


def _no_sums(latents: int) -> Sums:
    return Sums(np.zeros((latents, BINS)), np.zeros((latents, BINS)), np.zeros((latents, BINS)))


@compiled
def init_root(
    work: Workspace, data: Binned, roots: Floats, lane: int, gradient: Floats, own: NDArray[np.bool_]
) -> None:
    """All rows in the root, and its sums."""
    latents, rows = data.columns.shape
    sums = work.sums[0]
    sums.own[:] = 0
    total, squares = 0.0, 0.0
    for i in range(rows):
        total += gradient[i]
        squares += gradient[i] * gradient[i]
        work.nodes[i] = 0
        work.rows[i] = i
        if own[i]:
            for j in range(latents):
                sums.own[j, data.by_row[i, j]] += gradient[i]
    for j in range(latents):
        for b in range(BINS):
            sums.gradients[j, b] = roots[j, b, lane]
            sums.counts[j, b] = data.counts[j, b]
    work.ends[0, 0], work.ends[0, 1] = 0, rows
    work.totals[0, 0], work.totals[0, 1] = total, squares - total * total / rows
    work.slots[0] = 0


@compiled
def grow_tree(
    work: Workspace, data: Binned, gradient: Floats, own: NDArray[np.bool_], draws: Floats, importances: Floats
) -> None:
    """Split the nodes of all depths but the last. A node without a split hands all its rows to its left child."""
    for node in range(INNER):
        count = work.ends[node, 1] - work.ends[node, 0]
        work.latents[node], work.thresholds[node] = 0, np.inf
        left, left_sum = count, work.totals[node, 0]
        found = False
        if _open(work, node):
            split = best_split(
                work.sums[work.slots[node]],
                data,
                gradient,
                work.nodes,
                node,
                count,
                work.totals[node, 0],
                draws[node],
            )
            if split.latent >= 0:
                found = True
                work.latents[node], work.thresholds[node] = split.latent, split.threshold
                left, left_sum = int(split.left), split.left_sum
                importances[split.latent] += split.gain
        partition_rows(work, data.columns, gradient, node, left, left_sum)
        if not found:
            work.totals[2 * node + 1, 1] = 0.0  # what could not be split here cannot be there
        elif 2 * node + 1 < INNER:
            _share_sums(work, data.by_row, gradient, own, node)


@compiled
def _open(work: Workspace, node: int) -> bool:
    """Whether a split is looked for: rows that differ, by scikit-learn's limit."""
    count = work.ends[node, 1] - work.ends[node, 0]
    return bool(count > 1 and work.totals[node, 1] > EPSILON * count)


@compiled
def partition_rows(
    work: Workspace, columns: NDArray[np.float32], gradient: Floats, node: int, left: int, left_sum: float
) -> None:
    """Move a node's rows to its children, in their order."""
    start, end = work.ends[node]
    column, threshold = columns[work.latents[node]], work.thresholds[node]
    left_mean = left_sum / max(left, 1)
    right_mean = (work.totals[node, 0] - left_sum) / max(end - start - left, 1)
    mine, others = start, 0
    left_squares, right_squares = 0.0, 0.0
    for i in range(start, end):
        row = work.rows[i]
        right = column[row] > threshold
        work.rows[mine] = row
        work.spare[others] = row
        mine += not right
        others += right
        work.nodes[row] = 2 * node + 1 + right
        distance = gradient[row] - (right_mean if right else left_mean)
        left_squares += 0.0 if right else distance * distance
        right_squares += distance * distance if right else 0.0
    for i in range(others):
        work.rows[mine + i] = work.spare[i]
    child = 2 * node + 1
    work.ends[child, 0], work.ends[child, 1] = start, mine
    work.ends[child + 1, 0], work.ends[child + 1, 1] = mine, end
    work.totals[child, 0], work.totals[child, 1] = left_sum, left_squares
    work.totals[child + 1, 0], work.totals[child + 1, 1] = work.totals[node, 0] - left_sum, right_squares


@compiled
def _share_sums(
    work: Workspace, by_row: NDArray[np.uint8], gradient: Floats, own: NDArray[np.bool_], node: int
) -> None:
    """Sums of a node's children: the smaller one's from its rows, the larger one's are what remains."""
    small, large = 2 * node + 1, 2 * node + 2
    if work.ends[small, 1] - work.ends[small, 0] > work.ends[large, 1] - work.ends[large, 0]:
        small, large = large, small
    if not (_open(work, small) or _open(work, large)):
        return
    work.slots[large] = work.slots[node]
    work.slots[small] = node + 1
    part, rest = work.sums[work.slots[small]], work.sums[work.slots[large]]
    add_rows(part, work.rows[work.ends[small, 0] : work.ends[small, 1]], by_row, gradient, own)
    for j in range(by_row.shape[1]):
        for b in range(BINS):
            rest.gradients[j, b] -= part.gradients[j, b]
            rest.own[j, b] -= part.own[j, b]
            rest.counts[j, b] -= part.counts[j, b]


@compiled
def set_leaves(work: Workspace, gradient: Floats, rate: float) -> None:
    """One Newton step for the log loss in each leaf, times `rate`."""
    for node in range(INNER, NODES):
        start, end = work.ends[node]
        slope, curvature = 0.0, 0.0
        for i in range(start, end):
            row = work.rows[i]
            size = abs(gradient[row])
            slope += gradient[row]
            curvature += size * (1 - size)
        # Where no probability can change the reference leaves it.
        work.leaves[node] = rate * slope / curvature if curvature > 1e-150 * (end - start) else 0.0


@compiled
def add_leaves(work: Workspace, raw: Floats, test: NDArray[np.float32], raw_test: Floats) -> None:
    """Add the tree's values to the scores of train and test rows."""
    for i in range(len(raw)):
        raw[i] += work.leaves[work.nodes[i]]
    for i in range(len(raw_test)):
        node = 0
        for _ in range(DEPTH):
            node = 2 * node + 1 + (test[work.latents[node], i] > work.thresholds[node])
        raw_test[i] += work.leaves[node]
