"""Gradient-boosted classification trees, the values of scikit-learn's GradientBoostingClassifier many times faster."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import vlae.trees.growth
import vlae.trees.presorted
import vlae.trees.splits
from vlae.trees.growth import INNER, Workspace, add_leaves, empty_work, grow_tree, init_root, set_leaves
from vlae.trees.presorted import BINS, Binned, Floats, binned, cached, compiled

STAGES, RATE = 100, 0.1
SIMD_WIDTH = 8  # classes whose sums at the root are made together, in the processor's vectors


class Boosted(NamedTuple):
    """What the trees know.

    importances (D,) float64: at least 0, sum 1; all 0 if no tree has a split. predictions (M,) of the values' dtype and
    scores (C, M) float64, or (1, M) for two values: of the test rows, the largest score's value is predicted.
    """

    importances: Floats
    predictions: NDArray[np.integer]
    scores: Floats


def boosted_trees(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    *,
    seed: int | Sequence[int],
) -> Boosted:
    """Fit 100 stages of trees of depth 3 with learning rate 0.1, one tree per stage and class, one for two classes.

    Thresholds are the middles between all distinct neighbors in the train codes; leaves are Newton steps (Friedman
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
    importances = _boost(data, test, own, raw, scores, draws, empty_work(*data.columns.shape))
    chosen = (scores[0] >= 0).astype(np.int64) if trees == 1 else scores.argmax(axis=0)
    total = importances.sum()
    return Boosted(importances / total if total > 0 else importances, values[chosen], scores)


@cached(vlae.trees.presorted, vlae.trees.splits, vlae.trees.growth)
def _boost(
    data: Binned,
    test: NDArray[np.float32],
    own: NDArray[np.bool_],
    raw: Floats,
    raw_test: Floats,
    draws: Floats,
    work: Workspace,
) -> Floats:
    """Importances (D,), not normalized; adds the trees' values to the scores of train and test rows."""
    trees, rows = own.shape
    gradients = np.empty((trees, rows))
    lanes = np.zeros(((trees + SIMD_WIDTH - 1) // SIMD_WIDTH, rows, SIMD_WIDTH))
    roots = np.empty((len(test), BINS, SIMD_WIDTH))
    importances = np.zeros(len(test))
    rate = RATE if trees == 1 else RATE * (trees - 1) / trees  # as in Friedman's algorithm 6
    for stage in range(draws.shape[0]):
        _gradients(raw, own, gradients, lanes)
        for tree in range(trees):
            if tree % SIMD_WIDTH == 0:
                _root_sums(data.by_latent, lanes[tree // SIMD_WIDTH], roots)
            init_root(work, data, roots, tree % SIMD_WIDTH, gradients[tree], own[tree])
            grow_tree(work, data, gradients[tree], own[tree], draws[stage, tree], importances)
            set_leaves(work, gradients[tree], rate)
            add_leaves(work, raw[tree], test, raw_test[tree])
    return importances


def _priors(own: NDArray[np.bool_]) -> Floats:
    """Scores of the train rows to begin with, (trees, N): log odds, or log shares of the classes."""
    share = own.mean(axis=1, keepdims=True)
    return np.repeat(np.log(share / (1 - share)) if len(own) == 1 else np.log(share), own.shape[1], axis=1)


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
            lanes[tree // SIMD_WIDTH, i, tree % SIMD_WIDTH] = gradients[tree, i]


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
