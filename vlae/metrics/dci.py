"""Disentanglement, completeness and informativeness, from the importance of each latent to boosted trees."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, check_split
from vlae.trees.ensemble import Boosted, boosted_trees

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DciScores:
    """Scores in [0, 1], higher is better, and what they are made of.

    disentanglement: does each latent serve one factor? NaN if fewer than two factors vary.
    completeness: is each factor served by one latent? NaN with one latent, or if no factor varies.
    informativeness: share of test rows whose value is told right, mean over the factors. A useless code has that of
        a guess. NaN if no factor varies.
    importances (D, K) float64: of each latent for each factor; a factor's sum to 1, or are all 0 if no latent varies.
    accuracies (K,) float64: of each factor.

    Factors with one value in the train rows are left out: NaN in the arrays.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importances: Floats
    accuracies: Floats


def dci_scores(
    train_codes: Array,
    train_factors: Factors,
    test_codes: Array,
    test_factors: Factors,
    *,
    seed: int,
    n_jobs: int = 1,
) -> DciScores:
    """DCI (Eastwood & Williams 2018, section 2) with gradient-boosted trees, as in Locatello et al. 2019.

    The trees are scikit-learn's GradientBoostingClassifier() by `boosted_trees`, one ensemble per factor. 1 minus the
    entropy of a latent's importances over the factors (base K) is its disentanglement, over the latents (base D) a
    factor's completeness; their means are weighted by the share of all importance. Latents that nothing depends on
    weigh nothing. Trees of a useless code split too, so that it is near 0, not at 0; with constant codes both are 0.

    Args:
        train_codes: (N, D) float, posterior means, N > 1; read as float32.
        train_factors: (N, K) int.
        test_codes: (M, D) float.
        test_factors: (M, K) int; a value that no train row has is told wrong.
        seed: at least 0; of the choice between latents that are equally good. Moves the scores by some .001, by some
            .01 if latents are copies of each other; the reference does not move less.
        n_jobs: threads, at least 1, of which each fits one factor at a time; the answer does not depend on it.

    Raises:
        ValueError: shapes that do not fit, no latents, fewer than two train rows, n_jobs below 1, or codes that are
            not finite in float32.
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    if len(train_codes) < 2:
        raise ValueError(f"need at least 2 train rows, got {train_codes.shape}")
    train, test = _single(train_codes), _single(test_codes)

    def fit(k: int) -> Boosted:
        return boosted_trees(train, train_factors[:, k], test, seed=[seed, k])

    values = np.array([len(np.unique(column)) for column in train_factors.T])
    # Those with many values, hence many trees, first: no thread is left alone with a long one at the end.
    varying = [int(k) for k in np.argsort(-values, kind="stable") if values[k] > 1]
    importances = np.full((train.shape[1], len(values)), np.nan)
    accuracies = np.full(len(values), np.nan)
    with ThreadPoolExecutor(n_jobs) as threads:
        for k, trees in zip(varying, threads.map(fit, varying), strict=True):
            importances[:, k] = trees.importances
            accuracies[k] = (trees.predictions == test_factors[:, k]).mean()
    known = importances[:, sorted(varying)]
    informativeness = float(np.nanmean(accuracies)) if varying else float("nan")
    return DciScores(_concentration(known), _concentration(known.T), informativeness, importances, accuracies)


def rung_dci_scores(importances: Floats, dims: Sequence[int]) -> tuple[float, float]:
    """Disentanglement and completeness of whole rungs: a rung's importance is the sum of its latents'.

    Args:
        importances: (D, K) float, by `dci_scores`, latents in the order of their rungs; NaN columns are left out.
        dims: latents D_l of each of the L rungs, each at least 1.

    Raises:
        ValueError: dims that are not D in all, or importances that are not (D, K).

    Returns:
        (disentanglement, completeness), in [0, 1]: 1 if each rung serves one factor, and if each factor is served by
        one rung; NaN as for `dci_scores`, for the rungs instead of the latents.
    """
    if importances.ndim != 2 or not dims or min(dims) < 1 or sum(dims) != len(importances):
        raise ValueError(f"importances (D, K) need rungs of D latents in all, got {importances.shape}, {list(dims)}")
    known = importances[:, ~np.isnan(importances).any(axis=0)]
    rungs = np.add.reduceat(known, np.cumsum([0, *dims[:-1]]), axis=0)
    return _concentration(rungs), _concentration(rungs.T)


def _single(codes: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = codes.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError(f"codes must be finite in float32, got up to {np.abs(codes).max()}")
    return single


def _concentration(importances: Floats) -> float:
    """Mean over rows of 1 - entropy in the base of the columns, weighted by the rows' sums; 0 if all are 0."""
    if importances.shape[1] < 2 or not len(importances):
        return float("nan")
    sums = importances.sum(axis=1)
    told = importances[sums > 0]
    if not len(told):
        return 0.0
    shares = told / told.sum(axis=1, keepdims=True)
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1) / np.log(importances.shape[1])
    return float(1 - entropies @ sums[sums > 0] / sums.sum())
