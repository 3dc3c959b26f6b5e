"""One regression tree on gradients, grown in place, node by node."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.trees.presorted import BINS, BinnedCodes, Floats, compiled
from vlae.trees.splits import Sums, add_rows, best_split

DEPTH = 3
INNER_NODES, NODES = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
EPSILON = float(np.finfo(np.float64).eps)


class Workspace(NamedTuple):
    """Arrays of one tree on N rows, reused for the next; node n has the children 2n + 1 and 2n + 2.

    Attributes:
        nodes: (N,) uint8, node of each row.
        rows: (N,) int32, grouped by node.
        spare: (N,) int32, scratch memory of `partition_rows`.
        ends: (NODES, 2) int64, first and last + 1 index of each node's rows.
        totals: (NODES, 2) float64, sum of the gradient and of its squared distances from the mean.
        latents: (INNER_NODES,) int64, of the splits.
        thresholds: (INNER_NODES,) float64, of the splits.
        leaves: (NODES,) float64, values.
        sums: Sums over bins of four nodes, as many as wait for a split at a time.
        slots: (NODES,) int64, index of each node's sums.
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


def empty_workspace(latents: int, rows: int) -> Workspace:
    """Return the arrays for trees on so many latents and train rows."""
    first, second, third, fourth = (Sums(*np.zeros((3, latents, BINS))) for _ in range(4))
    return Workspace(
        np.zeros(rows, np.uint8),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.zeros((NODES, 2), np.int64),
        np.zeros((NODES, 2)),
        np.zeros(INNER_NODES, np.int64),
        np.zeros(INNER_NODES),
        np.zeros(NODES),
        (first, second, third, fourth),
        np.zeros(NODES, np.int64),
    )


@compiled
def init_root(
    workspace: Workspace, data: BinnedCodes, roots: Floats, lane: int, gradient: Floats, in_class: NDArray[np.bool_]
) -> None:
    """Put all rows into the root and fill its sums, those of the gradients from one lane of `roots`."""
    latents, rows = data.columns.shape
    sums = workspace.sums[0]
    sums.positives[:] = 0
    total, squares = 0.0, 0.0
    for i in range(rows):
        total += gradient[i]
        squares += gradient[i] * gradient[i]
        workspace.nodes[i] = 0
        workspace.rows[i] = i
        if in_class[i]:
            for j in range(latents):
                sums.positives[j, data.by_row[i, j]] += gradient[i]
    for j in range(latents):
        for b in range(BINS):
            sums.gradients[j, b] = roots[j, b, lane]
            sums.counts[j, b] = data.counts[j, b]
    workspace.ends[0, 0], workspace.ends[0, 1] = 0, rows
    workspace.totals[0, 0], workspace.totals[0, 1] = total, squares - total * total / rows
    workspace.slots[0] = 0


@compiled
def grow_tree(
    workspace: Workspace,
    data: BinnedCodes,
    gradient: Floats,
    in_class: NDArray[np.bool_],
    draws: Floats,
    importances: Floats,
) -> None:
    """Split the nodes of all depths but the last; a node without a split hands all its rows to its left child."""
    for node in range(INNER_NODES):
        count = workspace.ends[node, 1] - workspace.ends[node, 0]
        workspace.latents[node], workspace.thresholds[node] = 0, np.inf
        left_count, left_sum = count, workspace.totals[node, 0]
        split_exists = False
        if _is_splittable(workspace, node):
            split = best_split(
                workspace.sums[workspace.slots[node]],
                data,
                gradient,
                workspace.nodes,
                node,
                count,
                workspace.totals[node, 0],
                draws[node],
            )
            if split.latent >= 0:
                split_exists = True
                workspace.latents[node], workspace.thresholds[node] = split.latent, split.threshold
                left_count, left_sum = int(split.left_count), split.left_sum
                importances[split.latent] += split.gain
        partition_rows(workspace, data.columns, gradient, node, left_count, left_sum)
        if not split_exists:
            workspace.totals[2 * node + 1, 1] = 0.0  # because the same rows have no split in the child either
        elif 2 * node + 1 < INNER_NODES:
            _fill_child_sums(workspace, data.by_row, gradient, in_class, node)


@compiled
def _is_splittable(workspace: Workspace, node: int) -> bool:
    """Return whether the node's gradients differ, by scikit-learn's limit."""
    count = workspace.ends[node, 1] - workspace.ends[node, 0]
    return bool(count > 1 and workspace.totals[node, 1] > EPSILON * count)


@compiled
def partition_rows(
    workspace: Workspace, columns: NDArray[np.float32], gradient: Floats, node: int, left_count: int, left_sum: float
) -> None:
    """Move a node's rows to its children, in their order."""
    start, end = workspace.ends[node]
    column, threshold = columns[workspace.latents[node]], workspace.thresholds[node]
    left_mean = left_sum / max(left_count, 1)
    right_mean = (workspace.totals[node, 0] - left_sum) / max(end - start - left_count, 1)
    middle, num_right = start, 0
    left_squares, right_squares = 0.0, 0.0
    for i in range(start, end):
        row = workspace.rows[i]
        right = column[row] > threshold
        # Without branches: both are written, and only one index advances.
        workspace.rows[middle] = row
        workspace.spare[num_right] = row
        middle += not right
        num_right += right
        workspace.nodes[row] = 2 * node + 1 + right
        distance = gradient[row] - (right_mean if right else left_mean)
        left_squares += 0.0 if right else distance * distance
        right_squares += distance * distance if right else 0.0
    for i in range(num_right):
        workspace.rows[middle + i] = workspace.spare[i]
    child = 2 * node + 1
    workspace.ends[child, 0], workspace.ends[child, 1] = start, middle
    workspace.ends[child + 1, 0], workspace.ends[child + 1, 1] = middle, end
    workspace.totals[child, 0], workspace.totals[child, 1] = left_sum, left_squares
    workspace.totals[child + 1, 0], workspace.totals[child + 1, 1] = workspace.totals[node, 0] - left_sum, right_squares


@compiled
def _fill_child_sums(
    workspace: Workspace, by_row: NDArray[np.uint8], gradient: Floats, in_class: NDArray[np.bool_], node: int
) -> None:
    """Sum the smaller child's rows, and subtract the result from the parent's sums to get those of the larger child."""
    small, large = 2 * node + 1, 2 * node + 2
    if workspace.ends[small, 1] - workspace.ends[small, 0] > workspace.ends[large, 1] - workspace.ends[large, 0]:
        small, large = large, small
    if not (_is_splittable(workspace, small) or _is_splittable(workspace, large)):
        return
    workspace.slots[large] = workspace.slots[node]
    workspace.slots[small] = node + 1
    small_sums, large_sums = workspace.sums[workspace.slots[small]], workspace.sums[workspace.slots[large]]
    rows = workspace.rows[workspace.ends[small, 0] : workspace.ends[small, 1]]
    add_rows(small_sums, rows, by_row, gradient, in_class)
    for j in range(by_row.shape[1]):
        for b in range(BINS):
            large_sums.gradients[j, b] -= small_sums.gradients[j, b]
            large_sums.positives[j, b] -= small_sums.positives[j, b]
            large_sums.counts[j, b] -= small_sums.counts[j, b]


@compiled
def set_leaves(workspace: Workspace, gradient: Floats, rate: float) -> None:
    """Set each leaf to one Newton step for the log loss, times the learning rate."""
    for node in range(INNER_NODES, NODES):
        start, end = workspace.ends[node]
        slope, curvature = 0.0, 0.0
        for i in range(start, end):
            row = workspace.rows[i]
            size = abs(gradient[row])
            slope += gradient[row]
            curvature += size * (1 - size)
        # scikit-learn sets a leaf to 0 where no probability can change.
        workspace.leaves[node] = rate * slope / curvature if curvature > 1e-150 * (end - start) else 0.0


@compiled
def add_leaves(workspace: Workspace, raw: Floats, test: NDArray[np.float32], raw_test: Floats) -> None:
    """Add the tree's values to the scores of train and test rows."""
    for i in range(len(raw)):
        raw[i] += workspace.leaves[workspace.nodes[i]]
    for i in range(len(raw_test)):
        node = 0
        for _ in range(DEPTH):
            node = 2 * node + 1 + (test[workspace.latents[node], i] > workspace.thresholds[node])
        raw_test[i] += workspace.leaves[node]
