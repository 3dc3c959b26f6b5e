"""Gradient-boosted classification trees with the values of scikit-learn's GradientBoostingClassifier."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import vlae.trees.growth
import vlae.trees.presorted
import vlae.trees.splits
from vlae.trees.growth import INNER_NODES, Workspace, add_leaves, empty_workspace, grow_tree, init_root, set_leaves
from vlae.trees.presorted import BINS, BinnedCodes, Floats, bin_codes, cached, compiled

STAGES, LEARNING_RATE = 100, 0.1
SIMD_WIDTH = 8  # classes whose sums at the root are computed together, in the processor's vectors


class BoostedTrees(NamedTuple):
    """Result of `fit_boosted_trees`.

    Attributes:
        importances: (D,) float64, at least 0 with sum 1; all 0 if no tree has a split.
        predictions: (M,) of the values' dtype, the value of the largest score of each test row.
        scores: (C, M) float64, or (1, M) for two values, of the test rows.
    """

    importances: Floats
    predictions: NDArray[np.integer]
    scores: Floats


def fit_boosted_trees(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    *,
    seed: int | Sequence[int],
) -> BoostedTrees:
    """Return importances, and predictions for the test rows, of 100 stages of trees of depth 3 with learning rate 0.1.

    A stage has one tree per class, or one for two classes. Thresholds are the middles between all distinct neighbors in
    the train codes; leaves are Newton steps; latents that are equally good are chosen between at random. The importance
    of a latent is the fraction of the decrease of the squared error by its splits.

    Args:
        train_codes: Codes (N, D) float, N > 1; read as float32, as in scikit-learn.
        train_values: Values (N,) int, at least two distinct.
        test_codes: Codes (M, D) float.
        seed: Random seed, at least 0, for the choice between equally good latents.

    Raises:
        ValueError: There are fewer than two distinct values.

    References:
        Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of Statistics 29(5), 2001,
        algorithm 6; for two classes algorithm 5.

    Example:
        >>> values = np.arange(60) % 3
        >>> trees = fit_boosted_trees(np.eye(4)[values], values, np.eye(4)[:3], seed=0)
        >>> trees.predictions
        array([0, 1, 2])
    """
    values, classes = np.unique(train_values, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"train_values: got only {values}. Pass at least two distinct values.")
    num_trees = 1 if len(values) == 2 else len(values)
    draws = np.random.default_rng(seed).random((STAGES, num_trees, INNER_NODES))
    test = np.ascontiguousarray(test_codes.T, dtype=np.float32)
    data = bin_codes(train_codes.astype(np.float32))
    # The only tree of two classes is that of the second.
    in_class = classes == (np.ones((1, 1)) if num_trees == 1 else np.arange(num_trees)[:, None])
    frequencies = in_class.mean(axis=1, keepdims=True)
    prior = np.log(frequencies / (1 - frequencies)) if num_trees == 1 else np.log(frequencies)
    raw, scores = np.repeat(prior, len(classes), axis=1), np.repeat(prior, len(test_codes), axis=1)
    importances = _boost(data, test, in_class, raw, scores, draws, empty_workspace(*data.columns.shape))
    predicted = (scores[0] >= 0).astype(np.int64) if num_trees == 1 else scores.argmax(axis=0)
    total = importances.sum()
    return BoostedTrees(importances / total if total > 0 else importances, values[predicted], scores)


@cached(vlae.trees.presorted, vlae.trees.splits, vlae.trees.growth)
def _boost(
    data: BinnedCodes,
    test: NDArray[np.float32],
    in_class: NDArray[np.bool_],
    raw: Floats,
    raw_test: Floats,
    draws: Floats,
    workspace: Workspace,
) -> Floats:
    """Return importances (D,), not normalized, and add the trees' values to the scores of train and test rows."""
    num_trees, rows = in_class.shape
    gradients = np.empty((num_trees, rows))
    lanes = np.zeros(((num_trees + SIMD_WIDTH - 1) // SIMD_WIDTH, rows, SIMD_WIDTH))
    roots = np.empty((len(test), BINS, SIMD_WIDTH))
    importances = np.zeros(len(test))
    rate = LEARNING_RATE if num_trees == 1 else LEARNING_RATE * (num_trees - 1) / num_trees  # Friedman's algorithm 6
    for stage in range(draws.shape[0]):
        _fill_gradients(raw, in_class, gradients, lanes)
        for tree in range(num_trees):
            if tree % SIMD_WIDTH == 0:
                _fill_root_sums(data.by_latent, lanes[tree // SIMD_WIDTH], roots)
            init_root(workspace, data, roots, tree % SIMD_WIDTH, gradients[tree], in_class[tree])
            grow_tree(workspace, data, gradients[tree], in_class[tree], draws[stage, tree], importances)
            set_leaves(workspace, gradients[tree], rate)
            add_leaves(workspace, raw[tree], test, raw_test[tree])
    return importances


@compiled
def _fill_gradients(raw: Floats, in_class: NDArray[np.bool_], gradients: Floats, lanes: Floats) -> None:
    """Set the class indicators minus the probabilities, per tree, and with SIMD_WIDTH trees side by side."""
    num_trees, rows = raw.shape
    for i in range(rows):
        if num_trees == 1:
            gradients[0, i] = in_class[0, i] - 1 / (1 + np.exp(-raw[0, i]))
            lanes[0, i, 0] = gradients[0, i]
            continue
        top = raw[0, i]
        for tree in range(1, num_trees):
            top = max(top, raw[tree, i])
        total = 0.0
        for tree in range(num_trees):
            gradients[tree, i] = np.exp(raw[tree, i] - top)
            total += gradients[tree, i]
        for tree in range(num_trees):
            gradients[tree, i] = in_class[tree, i] - gradients[tree, i] / total
            lanes[tree // SIMD_WIDTH, i, tree % SIMD_WIDTH] = gradients[tree, i]


@compiled
def _fill_root_sums(by_latent: NDArray[np.uint8], lanes: Floats, roots: Floats) -> None:
    """Sum the gradients (N, SIMD_WIDTH) over the bins of each latent, (D, BINS, SIMD_WIDTH)."""
    roots[:] = 0
    for j in range(by_latent.shape[0]):
        for i in range(by_latent.shape[1]):
            b = by_latent[j, i]
            # Unrolled, with all reads before any write, because LLVM does not vectorize a loop over the lanes.
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
