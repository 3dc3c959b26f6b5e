"""What a classifier reads from rungs: each alone, all together, all but one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, check_split, varies

Floats = NDArray[np.float64]

_NOISE = 0.05  # of a chance-corrected accuracy on a few hundred test images


def probe_accuracy(
    train_codes: Array,
    train_factors: Factors,
    test_codes: Array,
    test_factors: Factors,
    *,
    seed: int,
    n_jobs: int = 1,
) -> NDArray[np.float64]:
    """How well each factor can be read from codes: (accuracy - chance) / (1 - chance) on test rows, (K,).

    Two probes on standardized codes, the better one per factor by a fifth of the train rows that neither was
    fitted to: linear discriminants, which read rotated and circular codes whose values are blobs, and one
    forest of 100 extremely randomized trees for all factors (Geurts et al. 2006), which reads any shape and
    is not troubled by useless latents. On twelve rotated latents with eight dead ones the first gets .97 and
    the second .41; neighbors get .28, and fail wherever there are dead latents.

    Give it SAMPLES of the posterior: the means of a collapsed rung tell what its samples do not.

    Args:
        train_codes: (N, D) float, N > 4.
        train_factors: (N, K) int.
        test_codes: (M, D) float.
        test_factors: (M, K) int.
        seed: of the trees and of the choice of rows.
        n_jobs: threads for the trees; the answer does not depend on it.

    Returns:
        At most 1; 0 = no better than the commonest train value always, and a little below is possible; 0 with
        no latents; NaN for a factor with one value in either set.

    Raises:
        ValueError: shapes that do not fit, too few train rows, or codes that are not finite.
    """
    check_split(train_codes, train_factors, test_codes, test_factors, latents=0)
    if len(train_codes) < 5:
        raise ValueError(f"need at least 5 train rows, got {train_codes.shape}")
    if not train_codes.shape[1]:
        return _corrected(_majority(train_factors, len(test_factors)), train_factors, test_factors)
    guesses = _predicted(train_codes, train_factors, test_codes, seed, n_jobs)
    return _corrected(guesses, train_factors, test_factors)


def _predicted(train_codes: Array, train_factors: Factors, test_codes: Array, seed: int, n_jobs: int) -> Factors:
    """Values of each factor in the test rows, (M, K), by the probe that suits the factor."""
    scale = StandardScaler().fit(train_codes)
    codes = scale.transform(train_codes)
    judge = np.random.default_rng(seed).permutation(len(codes)) % 5 == 0
    fitted, factors, judged = codes[~judge], train_factors[~judge], int(judge.sum())
    asked = np.concatenate([codes[judge], scale.transform(test_codes)])
    trees = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed, n_jobs=n_jobs)
    trees.fit(fitted, factors if factors.shape[1] > 1 else factors[:, 0])
    guesses: Factors = trees.predict(asked).reshape(len(asked), -1)
    for k, truth in enumerate(train_factors[judge].T):
        linear = _discriminants(fitted, factors[:, k], asked)
        if (linear[:judged] == truth).sum() > (guesses[:judged, k] == truth).sum():
            guesses[:, k] = linear
    return guesses[judged:]


@dataclass(frozen=True)
class RungProbes:
    """Chance-corrected accuracies by `probe_accuracy`, rung 0 at the bottom; NaN columns as there.

    alone (L, K): one rung by itself. whole (K,): all rungs together. without (L, K): all but one.
    """

    alone: Floats
    whole: Floats
    without: Floats

    @property
    def unique_information(self) -> Floats:
        """What is lost without each rung, (L, K) in accuracy; about 0 for a redundant rung, noise goes below."""
        return self.whole - self.without

    @property
    def upper_rung_gain(self) -> float:
        """Share of the whole, summed over factors, that is lost if only the bottom rung is kept.

        About 0 = the bottom rung tells all, 1 = it tells nothing; NaN if the whole code tells less than .05 of a
        factor on average, which is the probes' noise: a share of that can be anything.
        """
        known = self.whole[~np.isnan(self.whole)]
        if not len(known) or known.mean() < _NOISE:
            return float("nan")
        return float((known.sum() - np.nansum(self.alone[0])) / known.sum())


def probe_rungs(
    train_rungs: Sequence[Array],
    train_factors: Factors,
    test_rungs: Sequence[Array],
    test_factors: Factors,
    *,
    seed: int,
    n_jobs: int = 1,
) -> RungProbes:
    """Probe every rung alone, all together, and all but each; no set of rungs is probed twice.

    Args:
        train_rungs: L arrays (N, D_l) float, bottom first: samples of the posteriors.
        train_factors: (N, K) int.
        test_rungs: L arrays (M, D_l) float.
        test_factors: (M, K) int.
        seed: as for `probe_accuracy`.
        n_jobs: as for `probe_accuracy`.

    Raises:
        ValueError: no rungs, train and test rungs of different shape, or as `probe_accuracy`.
    """
    _check_rungs(train_rungs, test_rungs)
    known: dict[tuple[int, ...], Floats] = {}

    def probe(rungs: tuple[int, ...]) -> Floats:
        if rungs not in known:
            train, test = (
                np.concatenate([part[0][:, :0], *(part[level] for level in rungs)], axis=1)
                for part in (train_rungs, test_rungs)
            )
            known[rungs] = probe_accuracy(train, train_factors, test, test_factors, seed=seed, n_jobs=n_jobs)
        return known[rungs]

    levels = tuple(range(len(train_rungs)))
    alone = np.stack([probe((level,)) for level in levels])
    without = np.stack([probe(tuple(other for other in levels if other != level)) for level in levels])
    return RungProbes(alone, probe(levels), without)


def _discriminants(codes: Floats, values: NDArray[np.integer], asked: Floats) -> NDArray[np.integer]:
    """Predicted values of the rows `asked`."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    known = counts[place] > 1  # one row has no spread
    if len(np.unique(values[known])) < 2:
        return _majority(values[:, None], len(asked))[:, 0]
    # Shrinkage of a thousandth: latents that are constant or copies leave the covariance singular.
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(codes[known], values[known])
    return np.asarray(fitted.predict(asked))


def _majority(factors: Factors, rows: int) -> Factors:
    """The commonest value of each factor, (rows, K)."""
    common = []
    for column in factors.T:
        values, counts = np.unique(column, return_counts=True)
        common.append(values[counts.argmax()])
    return np.tile(np.array(common, dtype=factors.dtype), (rows, 1))


def _corrected(guesses: Factors, train_factors: Factors, test_factors: Factors) -> Floats:
    accuracy = (guesses == test_factors).mean(axis=0)
    chance = (_majority(train_factors, len(test_factors)) == test_factors).mean(axis=0)
    known = varies(train_factors) & varies(test_factors)
    return np.where(known, (accuracy - chance) / np.where(chance < 1, 1 - chance, 1), np.nan)


def _check_rungs(train_rungs: Sequence[Array], test_rungs: Sequence[Array]) -> None:
    train, test = ([rung.shape for rung in rungs] for rungs in (train_rungs, test_rungs))
    matrices = all(len(shape) == 2 for shape in train + test)
    same_rows = all(len({shape[:1] for shape in shapes}) == 1 for shapes in (train, test))
    if not (matrices and same_rows and [shape[1:] for shape in train] == [shape[1:] for shape in test]):
        raise ValueError(f"train and test rungs (N, D_l), (M, D_l) must agree, got {train}, {test}")
