"""Gradient-boosted classification trees, the values of scikit-learn's GradientBoostingClassifier many times faster."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlae.metrics import splits
from vlae.metrics.splits import BINS, Binned, Floats, Sums, add_rows, best_split, binned, cached, compiled

STAGES, DEPTH, RATE = 100, 3, 0.1
INNER, NODES = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
LANES = 8  # classes whose sums at the root are made together, in the processor's vectors
EPSILON = float(np.finfo(np.float64).eps)


class Boosted(NamedTuple):
    """What the trees know.

    importances (D,) float64: at least 0, sum 1; all 0 if no tree has a split. predictions (M,) of the values' dtype and
    scores (C, M) float64, or (1, M) for two values: of the test rows, the largest score's value is predicted.
    """

    importances: Floats
    predictions: NDArray[np.integer]
    scores: Floats


class Work(NamedTuple):
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


def boosted_trees(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    *,
    seed: int | Sequence[int],
) -> Boosted:
    """Fit 100 stages of trees of depth 3 with learning rate 0.1, one tree per stage and class, one for two classes.

    Thresholds are the middles between all distinct neighbours in the train codes; leaves are Newton steps (Friedman
    2001, algorithm 6; for two classes algorithm 5); latents that are equally good are chosen between at random. An
    importance is the share of the decrease of the squared error.

    Args:
        train_codes: (N, D) float, N > 1; read as float32, as scikit-learn does.
        train_values: (N,) int, at least two distinct.
        test_codes: (M, D) float.
        seed: one or several numbers, at least 0, of the choice between equally good latents.

    Raises:
        ValueError: fewer than two distinct values.
    """
    values, classes = np.unique(train_values, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"need at least two distinct values, got {values}")
    trees = 1 if len(values) == 2 else len(values)
    draws = np.random.default_rng(seed).random((STAGES, trees, INNER))
    test = np.ascontiguousarray(test_codes.T, dtype=np.float32)
    data = binned(train_codes.astype(np.float32))
    own = classes == (np.ones((1, 1)) if trees == 1 else np.arange(trees)[:, None])  # the one tree is the second's
    raw = _priors(own)
    scores = np.repeat(raw[:, :1], len(test_codes), axis=1)
    importances = _boost(data, test, own, raw, scores, draws, _work(*data.columns.shape))
    chosen = (scores[0] >= 0).astype(np.int64) if trees == 1 else scores.argmax(axis=0)
    total = importances.sum()
    return Boosted(importances / total if total > 0 else importances, values[chosen], scores)


@cached(splits)
def _boost(
    data: Binned,
    test: NDArray[np.float32],
    own: NDArray[np.bool_],
    raw: Floats,
    raw_test: Floats,
    draws: Floats,
    work: Work,
) -> Floats:
    """Importances (D,), not normalised; adds the trees' values to the scores of train and test rows."""
    trees, rows = own.shape
    gradients = np.empty((trees, rows))
    lanes = np.zeros(((trees + LANES - 1) // LANES, rows, LANES))
    roots = np.empty((len(test), BINS, LANES))
    importances = np.zeros(len(test))
    for stage in range(draws.shape[0]):
        _gradients(raw, own, gradients, lanes)
        for tree in range(trees):
            if tree % LANES == 0:
                _root_sums(data.by_latent, lanes[tree // LANES], roots)
            _plant(work, data, roots, tree % LANES, gradients[tree], own[tree])
            _grow(work, data, gradients[tree], own[tree], draws[stage, tree], importances)
            _leaves(work, data, gradients[tree], 1.0 if trees == 1 else (trees - 1) / trees)
            _add(work, raw[tree], test, raw_test[tree])
    return importances


def _priors(own: NDArray[np.bool_]) -> Floats:
    """Scores of the train rows to begin with, (trees, N): log odds, or log shares of the classes."""
    share = own.mean(axis=1, keepdims=True)
    return np.repeat(np.log(share / (1 - share)) if len(own) == 1 else np.log(share), own.shape[1], axis=1)


def _work(latents: int, rows: int) -> Work:
    sums = (_no_sums(latents), _no_sums(latents), _no_sums(latents), _no_sums(latents))
    return Work(
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
def _gradients(raw: Floats, own: NDArray[np.bool_], gradients: Floats, lanes: Floats) -> None:
    """Class indicator minus probability, per tree, and once more with the trees of LANES side by side."""
    trees, rows = raw.shape
    for i in range(rows):
        if trees == 1:
            gradients[0, i] = own[0, i] - 1 / (1 + np.exp(-raw[0, i]))
            lanes[0, i, 0] = gradients[0, i]
            continue
        top = raw[0, i]
        for tree in range(1, trees):
            top = max(top, raw[tree, i])
        total = 0.0
        for tree in range(trees):
            gradients[tree, i] = np.exp(raw[tree, i] - top)
            total += gradients[tree, i]
        for tree in range(trees):
            gradients[tree, i] = own[tree, i] - gradients[tree, i] / total
            lanes[tree // LANES, i, tree % LANES] = gradients[tree, i]


@compiled
def _root_sums(by_latent: NDArray[np.uint8], lanes: Floats, roots: Floats) -> None:
    """Sums of the gradients (N, LANES) over the bins of each latent, (D, BINS, LANES)."""
    roots[:] = 0
    for j in range(by_latent.shape[0]):
        for i in range(by_latent.shape[1]):
            b = by_latent[j, i]
            # Written out, and all read before any is written, so that the compiler makes vectors of them.
            g0, g1, g2, g3 = lanes[i, 0], lanes[i, 1], lanes[i, 2], lanes[i, 3]
            g4, g5, g6, g7 = lanes[i, 4], lanes[i, 5], lanes[i, 6], lanes[i, 7]
            roots[j, b, 0] += g0
            roots[j, b, 1] += g1
            roots[j, b, 2] += g2
            roots[j, b, 3] += g3
            roots[j, b, 4] += g4
            roots[j, b, 5] += g5
            roots[j, b, 6] += g6
            roots[j, b, 7] += g7


@compiled
def _plant(work: Work, data: Binned, roots: Floats, lane: int, gradient: Floats, own: NDArray[np.bool_]) -> None:
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
def _grow(
    work: Work, data: Binned, gradient: Floats, own: NDArray[np.bool_], draws: Floats, importances: Floats
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
        _part(work, data.columns, gradient, node, left, left_sum)
        if found and 2 * node + 1 < INNER:
            _share_sums(work, data.by_row, gradient, own, node)


@compiled
def _open(work: Work, node: int) -> bool:
    """Whether a split is looked for: rows that differ, by scikit-learn's limit."""
    count = work.ends[node, 1] - work.ends[node, 0]
    return bool(count > 1 and work.totals[node, 1] > EPSILON * count)


@compiled
def _part(work: Work, columns: NDArray[np.float32], gradient: Floats, node: int, left: int, left_sum: float) -> None:
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
def _share_sums(work: Work, by_row: NDArray[np.uint8], gradient: Floats, own: NDArray[np.bool_], node: int) -> None:
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
def _leaves(work: Work, data: Binned, gradient: Floats, shrink: float) -> None:
    """One Newton step in each leaf, for the log loss."""
    for node in range(INNER, NODES):
        start, end = work.ends[node]
        slope, curvature = 0.0, 0.0
        for i in range(start, end):
            row = work.rows[i]
            size = abs(gradient[row])
            slope += gradient[row]
            curvature += size * (1 - size)
        # Where no probability can change the reference leaves it.
        work.leaves[node] = RATE * shrink * slope / curvature if curvature > 1e-150 * (end - start) else 0.0


@compiled
def _add(work: Work, raw: Floats, test: NDArray[np.float32], raw_test: Floats) -> None:
    """Add the tree's values to the scores of train and test rows."""
    for i in range(len(raw)):
        raw[i] += work.leaves[work.nodes[i]]
    for i in range(len(raw_test)):
        node = 0
        for _ in range(DEPTH):
            node = 2 * node + 1 + (test[work.latents[node], i] > work.thresholds[node])
        raw_test[i] += work.leaves[node]
