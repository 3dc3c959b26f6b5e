"""How complex a factor is: how far it is from being linear in the pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh

from vlae.metrics._validation import Factors, varies

Images = NDArray[np.generic]
Floats = NDArray[np.float64]

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the mean squared norm of a centerd image


def factor_complexity(
    train_images: Images, train_factors: Factors, test_images: Images, test_factors: Factors
) -> NDArray[np.float64]:
    """1 - R^2 of a linear probe from the pixels to each factor's easiest contrast, on held-out images, (K,).

    Ridge regression to the one-hot values gives the prediction of every contrast of them (a number for each
    value) at once. The contrast that is told best, such as a level's rank or the cosine of an angle, is found on
    a quarter of the train images, and so is the penalty. So ordered, cyclic and nominal factors are treated alike,
    however many values they have; an R^2 of the one-hot values themselves would fall as their number grows. Solved
    in its dual form, N x N, for all factors at once.

    Args:
        train_images: (N, C, H, W) uint8 or float, N > 3.
        train_factors: (N, K) int.
        test_images: (M, C, H, W), of the same C, H, W and scale.
        test_factors: (M, K) int.

    Returns:
        In [0, 1]: 0 = each value has its own direction, 1 = no linear trace; NaN for a factor with one value in
        either set. A level of V even values that moves the pixels along one line stays at 1 - 1 / (V - 1), a
        circle in a plane at 1 - 2 / (V - 1): the other directions between values are not linear.

    Raises:
        ValueError: shapes that do not fit, too few images, or images that are not finite.
    """
    _check(train_images, train_factors, test_images, test_factors)
    train, test = (part.reshape(len(part), -1).astype(np.float32) for part in (train_images, test_images))
    center = train.mean(axis=0)
    train, test = train - center, test - center
    gram, cross = (train @ train.T).astype(np.float64), (test @ train.T).astype(np.float64)
    pairs = [_onehot(a, b) for a, b in zip(train_factors.T, test_factors.T, strict=True)]
    targets = [first for first, _ in pairs]
    chosen = _easiest_contrasts(gram, targets)
    out = np.full(len(pairs), np.nan)
    for penalty in sorted({easiest.penalty for easiest in chosen}):
        mine = [k for k, easiest in enumerate(chosen) if easiest.penalty == penalty]
        for k, guess in zip(mine, _predict(gram, cross, [targets[k] for k in mine], penalty), strict=True):
            if varies(train_factors[:, k]) and varies(test_factors[:, k]):
                weights = chosen[k].weights
                out[k] = np.clip(_unexplained(pairs[k][1] @ weights, guess @ weights), 0, 1)
    return out


class _Contrast(NamedTuple):
    """A number for each value of a factor, (V,), and how it is told best."""

    unexplained: float  # of its variance
    penalty: float
    weights: Floats


def _easiest_contrasts(gram: Floats, targets: list[Floats]) -> list[_Contrast]:
    """For each target, what is told best of a quarter of the images by a fit to the others."""
    held = np.random.default_rng(0).permutation(len(gram)) % 4 == 0  # by position would tear a cycling factor
    inner, outer = gram[np.ix_(~held, ~held)], gram[np.ix_(held, ~held)]
    seen = [target[~held] for target in targets]
    found: list[list[_Contrast]] = [[] for _ in targets]
    for penalty in _PENALTIES:
        for options, target, guess in zip(found, targets, _predict(inner, outer, seen, penalty), strict=True):
            options.append(_contrast(target[held], guess, penalty))
    return [min(options, key=lambda option: option.unexplained) for options in found]


def _contrast(truth: Floats, guess: Floats, penalty: float) -> _Contrast:
    """The contrast w of one-hot values (N, V) with the least |(truth - guess) w|^2 / |(truth - mean) w|^2."""
    if truth.shape[1] < 2:
        return _Contrast(float("inf"), penalty, np.ones(1))
    # The last value's number is 0: adding a constant to all changes nothing.
    error, centerd = (truth - guess)[:, :-1], (truth - truth.mean(axis=0))[:, :-1]
    spread = centerd.T @ centerd
    spread += np.eye(len(spread)) * (1e-6 * np.trace(spread) + 1e-12)
    values, vectors = eigh(error.T @ error, spread)
    return _Contrast(float(values[0]), penalty, np.append(vectors[:, 0], 0.0))


def _predict(gram: Floats, cross: Floats, targets: list[Floats], penalty: float) -> list[Floats]:
    """Ridge predictions for the rows of `cross` (M, N) from the inner products `gram` (N, N) of the train rows."""
    wanted = np.concatenate(targets, axis=1)
    mean = wanted.mean(axis=0)
    padded = gram + np.eye(len(gram)) * (penalty * np.trace(gram) / len(gram) + 1e-12)
    found = cross @ cho_solve(cho_factor(padded, overwrite_a=True), wanted - mean) + mean
    return np.split(found, np.cumsum([target.shape[1] for target in targets])[:-1], axis=1)


def _onehot(train: NDArray[np.integer], test: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """(N, V) and (M, V) over the values that occur in either."""
    values = np.unique(np.concatenate([train, test]))
    return (train[:, None] == values).astype(np.float64), (test[:, None] == values).astype(np.float64)


def _unexplained(truth: Floats, guess: Floats) -> float:
    """1 - R^2 of (M,); infinite where nothing varies."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return float(((truth - guess) ** 2).sum()) / spread if spread > 0 else float("inf")


def _check(train_images: Images, train_factors: Factors, test_images: Images, test_factors: Factors) -> None:
    for images, factors in ((train_images, train_factors), (test_images, test_factors)):
        if images.ndim != 4 or factors.ndim != 2 or len(images) != len(factors) or not images.size:
            raise ValueError(
                f"images (N, C, H, W) and factors (N, K) must have the same N > 0, got {images.shape}, {factors.shape}"
            )
        if not np.isfinite(images.astype(np.float32)).all():
            raise ValueError("images hold values that are not finite")
    if train_images.shape[1:] != test_images.shape[1:] or train_factors.shape[1] != test_factors.shape[1]:
        raise ValueError(
            f"train and test must agree but for N, got images {train_images.shape}, {test_images.shape}, "
            f"factors {train_factors.shape}, {test_factors.shape}"
        )
    if len(train_images) < 4:
        raise ValueError(f"need at least 4 train images, got {train_images.shape}")
