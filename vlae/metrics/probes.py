"""Probes of rungs: what a classifier reads from each rung, from all rungs, and from all but one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, Floats, check_split, varies

_NOISE = 0.05  # of a chance-corrected accuracy on a few hundred test images


def probe_accuracy(
    train_codes: Array,
    train_factors: Factors,
    test_codes: Array,
    test_factors: Factors,
    *,
    seed: int,
    n_jobs: int = 1,
) -> Floats:
    """Compute the chance-corrected test accuracy of each factor, (accuracy - chance) / (1 - chance).

    Two probes on standardized codes; per factor the better one on a fifth of the train rows that neither was fitted
    to. Linear discriminants read rotated and circular codes whose values form blobs. One forest of 100 extremely
    randomized trees for all factors reads any shape and tolerates useless latents. On twelve rotated latents with
    eight inactive ones the first gets .97 and the second .41; nearest neighbors get .28.

    Pass SAMPLES of the posterior, because the means of a collapsed rung can hold what its samples do not.

    Args:
        train_codes: Posterior samples (N, D) float, N > 4.
        train_factors: Factors (N, K) int.
        test_codes: Posterior samples (M, D) float.
        test_factors: Factors (M, K) int.
        seed: Random seed for the trees and the choice of rows.
        n_jobs: Number of threads for the trees; the result does not depend on it.

    Returns:
        (K,) at most 1, higher is better; 0 = the accuracy of always predicting the commonest train value, slightly
        below by chance; 0 without latents; NaN for a factor with one value in either set.

    Raises:
        ValueError: The shapes do not fit, there are too few train rows, or codes are not finite.

    References:
        Alain and Bengio, "Understanding Intermediate Layers Using Linear Classifier Probes", 2016, arXiv:1610.01644;
        Geurts, Ernst and Wehenkel, "Extremely Randomized Trees", Machine Learning 63, 2006.

    Example:
        >>> factors = np.random.default_rng(0).integers(3, size=(200, 1))
        >>> probe_accuracy(factors.astype(float), factors, factors.astype(float), factors, seed=0)
        array([1.])
    """
    check_split(train_codes, train_factors, test_codes, test_factors, min_latents=0)
    if len(train_codes) < 5:
        raise ValueError(f"train_codes: got shape {train_codes.shape}. Pass at least 5 rows.")
    majority = _majority(train_factors, len(test_factors))
    has_latents = train_codes.shape[1] > 0
    predictions = _predict(train_codes, train_factors, test_codes, seed, n_jobs) if has_latents else majority
    accuracy, chance = ((each == test_factors).mean(axis=0) for each in (predictions, majority))
    varying = varies(train_factors) & varies(test_factors)
    return np.where(varying, (accuracy - chance) / np.where(chance < 1, 1 - chance, 1), np.nan)


def _predict(train_codes: Array, train_factors: Factors, test_codes: Array, seed: int, n_jobs: int) -> Factors:
    """Return the predicted factors of the test rows, (M, K), each by its better probe."""
    scale = StandardScaler().fit(train_codes)
    codes = scale.transform(train_codes)
    held_out = np.random.default_rng(seed).permutation(len(codes)) % 5 == 0
    fitted, factors, num_held_out = codes[~held_out], train_factors[~held_out], int(held_out.sum())
    queries = np.concatenate([codes[held_out], scale.transform(test_codes)])
    trees = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed, n_jobs=n_jobs)
    trees.fit(fitted, factors if factors.shape[1] > 1 else factors[:, 0])
    predictions: Factors = trees.predict(queries).reshape(len(queries), -1)
    for k, truth in enumerate(train_factors[held_out].T):
        linear = _predict_linear(fitted, factors[:, k], queries)
        if (linear[:num_held_out] == truth).sum() > (predictions[:num_held_out, k] == truth).sum():
            predictions[:, k] = linear
    return predictions[num_held_out:]


def _predict_linear(codes: Floats, values: NDArray[np.integer], queries: Floats) -> NDArray[np.integer]:
    """Return the values of the queries by linear discriminants."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    repeated = counts[index] > 1  # a value of one row has no spread
    if (counts > 1).sum() < 2:
        return _majority(values[:, None], len(queries))[:, 0]
    # Shrinkage of a thousandth, because constant and duplicated latents leave the covariance singular.
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(codes[repeated], values[repeated])
    return np.asarray(model.predict(queries))


def _majority(factors: Factors, rows: int) -> Factors:
    """Return the commonest value of each factor, (rows, K)."""
    counted = [np.unique(column, return_counts=True) for column in factors.T]
    common = [values[counts.argmax()] for values, counts in counted]
    return np.tile(np.array(common, dtype=factors.dtype), (rows, 1))


@dataclass(frozen=True)
class RungProbes:
    """Chance-corrected accuracies by `probe_accuracy`, rung 0 at the bottom, with its NaN columns.

    Attributes:
        single: (L, K) float64, of each rung by itself.
        all: (K,) float64, of all rungs together.
        leave_one_out: (L, K) float64, of all rungs but one.
    """

    single: Floats
    all: Floats
    leave_one_out: Floats

    @property
    def probe_drop(self) -> Floats:
        """Accuracy that is lost without each rung, (L, K); about 0 for a redundant rung."""
        return self.all - self.leave_one_out

    @property
    def upper_rung_gain(self) -> float:
        """Fraction of the accuracy of all rungs, summed over factors, that the bottom rung lacks.

        About 0 = the bottom rung holds everything, 1 = nothing. NaN if all rungs together have less than .05 per
        factor, because a fraction of the probes' noise is arbitrary.
        """
        accuracies = self.all[~np.isnan(self.all)]
        if not len(accuracies) or accuracies.mean() < _NOISE:
            return float("nan")
        return float((accuracies.sum() - np.nansum(self.single[0])) / accuracies.sum())


def probe_rungs(
    train_rungs: Sequence[Array],
    train_factors: Factors,
    test_rungs: Sequence[Array],
    test_factors: Factors,
    *,
    seed: int,
    n_jobs: int = 1,
) -> RungProbes:
    """Probe every rung by itself, all rungs together, and all but each; no set of rungs is probed twice.

    Args:
        train_rungs: Posterior samples, L arrays (N, D_l) float, bottom first.
        train_factors: Factors (N, K) int.
        test_rungs: Posterior samples, L arrays (M, D_l) float.
        test_factors: Factors (M, K) int.
        seed: Random seed, as for `probe_accuracy`.
        n_jobs: Number of threads, as for `probe_accuracy`.

    Returns:
        The accuracies of each set of rungs.

    Raises:
        ValueError: There are no rungs, train and test rungs have different shapes, or as `probe_accuracy`.

    Example:
        >>> factors = np.random.default_rng(0).integers(3, size=(200, 1))
        >>> rungs = [factors.astype(float), np.zeros((200, 2))]
        >>> probe_rungs(rungs, factors, rungs, factors, seed=0).probe_drop
        array([[1.],
               [0.]])
    """
    train, test = ([rung.shape for rung in rungs] for rungs in (train_rungs, test_rungs))
    matrices = all(len(shape) == 2 for shape in train + test)
    same_rows = all(len({shape[:1] for shape in shapes}) == 1 for shapes in (train, test))
    if not (matrices and same_rows and [shape[1:] for shape in train] == [shape[1:] for shape in test]):
        raise ValueError(f"train_rungs, test_rungs: got shapes {train}, {test}. Pass L arrays (N, D_l) and (M, D_l).")
    accuracies: dict[tuple[int, ...], Floats] = {}

    def probe(rungs: tuple[int, ...]) -> Floats:
        if rungs not in accuracies:
            train_codes, test_codes = (
                np.concatenate([arrays[0][:, :0], *(arrays[rung] for rung in rungs)], axis=1)
                for arrays in (train_rungs, test_rungs)
            )
            accuracies[rungs] = probe_accuracy(
                train_codes, train_factors, test_codes, test_factors, seed=seed, n_jobs=n_jobs
            )
        return accuracies[rungs]

    rungs = tuple(range(len(train_rungs)))
    single = np.stack([probe((rung,)) for rung in rungs])
    leave_one_out = np.stack([probe(tuple(other for other in rungs if other != rung)) for rung in rungs])
    return RungProbes(single, probe(rungs), leave_one_out)
