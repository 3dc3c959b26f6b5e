"""DCI: disentanglement, completeness and informativeness from the importances of gradient-boosted trees."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, Floats, check_split
from vlae.trees.ensemble import BoostedTrees, fit_boosted_trees


@dataclass(frozen=True)
class DciScores:
    """DCI of a code; factors with one value in the train rows are left out and NaN in the arrays.

    Attributes:
        disentanglement: Does each latent serve one factor? In [0, 1], higher is better; NaN if fewer than two factors
            vary.
        completeness: Is each factor served by one latent? In [0, 1], higher is better; NaN with one latent, or if no
            factor varies.
        informativeness: Mean over the factors of the accuracy on test rows, in [0, 1], higher is better; that of a
            guess for a useless code; NaN if no factor varies.
        importances: (D, K) float64, of each latent for each factor; those of a factor sum to 1, or are all 0 if no
            latent varies.
        accuracies: (K,) float64, of each factor.
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
    """Compute DCI with gradient-boosted trees.

    One ensemble per factor, of the values of scikit-learn's `GradientBoostingClassifier()`. The disentanglement of a
    latent is 1 minus the entropy (base K) of its importances over the factors, the completeness of a factor 1 minus
    the entropy (base D) over the latents; their means are weighted by the fraction of all importance. Trees of a
    useless code split too, so that its disentanglement is near 0 instead of 0; with constant codes both are 0.

    Args:
        train_codes: Posterior means (N, D) float, N > 1; read as float32.
        train_factors: Factors (N, K) int.
        test_codes: Posterior means (M, D) float.
        test_factors: Factors (M, K) int; a value without train rows counts as an error.
        seed: Random seed, at least 0, for the choice between equally good latents. It moves the scores by about .001,
            and by about .01 if latents are copies of each other, as it does with scikit-learn.
        n_jobs: Number of threads, at least 1, each of which fits one factor at a time; the result does not depend on
            it.

    Returns:
        The scores, and the importances and accuracies that they are computed from.

    Raises:
        ValueError: The shapes do not fit, there are no latents or fewer than two train rows, n_jobs is below 1, or
            codes are not finite in float32.

    References:
        Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled Representations", ICLR
        2018, section 2; trees as in Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.random.default_rng(0).integers(3, size=(200, 2))
        >>> scores = dci_scores(factors.astype(float), factors, factors.astype(float), factors, seed=0)
        >>> round(scores.disentanglement, 3), round(scores.completeness, 3), scores.informativeness
        (1.0, 1.0, 1.0)
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    if len(train_codes) < 2:
        raise ValueError(f"train_codes: got shape {train_codes.shape}. Pass at least 2 rows.")
    train, test = _as_float32(train_codes), _as_float32(test_codes)

    def fit(k: int) -> BoostedTrees:
        return fit_boosted_trees(train, train_factors[:, k], test, seed=[seed, k])

    num_values = np.array([len(np.unique(column)) for column in train_factors.T])
    # Factors with many values come first, because they have many trees: no thread ends with a long task alone.
    varying = [int(k) for k in np.argsort(-num_values, kind="stable") if num_values[k] > 1]
    importances = np.full((train.shape[1], len(num_values)), np.nan)
    accuracies = np.full(len(num_values), np.nan)
    with ThreadPoolExecutor(n_jobs) as threads:
        for k, trees in zip(varying, threads.map(fit, varying), strict=True):
            importances[:, k] = trees.importances
            accuracies[k] = (trees.predictions == test_factors[:, k]).mean()
    fitted = importances[:, sorted(varying)]
    informativeness = float(np.nanmean(accuracies)) if varying else float("nan")
    return DciScores(_concentration(fitted), _concentration(fitted.T), informativeness, importances, accuracies)


def rung_dci_scores(importances: Floats, dims: Sequence[int]) -> tuple[float, float]:
    """Compute the disentanglement and completeness of rungs; the importance of a rung is the sum over its latents.

    Args:
        importances: Importances (D, K) float by `dci_scores`, latents in the order of their rungs; NaN columns are
            left out.
        dims: Number of latents of each of the L rungs, each at least 1, with sum D.

    Returns:
        (disentanglement, completeness) in [0, 1], higher is better: 1 if each rung serves one factor, and if each
        factor is served by one rung; NaN as in `DciScores` with rungs in place of latents.

    Raises:
        ValueError: The dims do not sum to D, or the importances are not a matrix.

    References:
        Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled Representations", ICLR
        2018.

    Example:
        >>> rung_dci_scores(np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]), dims=[2, 1])
        (1.0, 1.0)
    """
    if importances.ndim != 2 or not dims or min(dims) < 1 or sum(dims) != len(importances):
        raise ValueError(f"importances, dims: got shape {importances.shape} and {list(dims)}. Pass dims with sum D.")
    fitted = importances[:, ~np.isnan(importances).any(axis=0)]
    rungs = np.add.reduceat(fitted, np.cumsum([0, *dims[:-1]]), axis=0)
    return _concentration(rungs), _concentration(rungs.T)


def _as_float32(codes: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = codes.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError(f"codes: {np.abs(codes).max()} overflows float32. Pass codes of a smaller scale.")
    return single


def _concentration(importances: Floats) -> float:
    """Return the mean over rows of 1 - entropy (base of the columns), weighted by the row sums; 0 if all are 0."""
    if importances.shape[1] < 2 or not len(importances):
        return float("nan")
    sums = importances.sum(axis=1)
    rows = importances[sums > 0]
    if not len(rows):
        return 0.0
    fractions = rows / rows.sum(axis=1, keepdims=True)
    logs = np.log(np.where(fractions > 0, fractions, 1))
    entropies = -(fractions * logs).sum(axis=1) / np.log(importances.shape[1])
    return float(1 - entropies @ sums[sums > 0] / sums.sum())
