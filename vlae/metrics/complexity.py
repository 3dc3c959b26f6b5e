"""Complexity of a factor: how far the factor is from being linear in the pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh

from vlae.metrics._validation import Factors, Floats, varies

Images = NDArray[np.generic]

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the mean squared norm of a centered image


class _Contrast(NamedTuple):
    """A weight for each value of a factor, (V,), and how well a linear probe predicts the weighted one-hot values."""

    unexplained: float  # fraction of its variance
    penalty: float
    weights: Floats


def factor_complexity(
    train_images: Images, train_factors: Factors, test_images: Images, test_factors: Factors
) -> Floats:
    """Compute 1 - R^2 of a linear probe from the pixels to each factor's easiest contrast, on held-out images.

    Ridge regression to the one-hot values predicts every contrast of them (a weight for each value) at once. The
    contrast that is predicted best, such as the rank of a level or the cosine of an angle, is chosen on a quarter of
    the train images, and so is the penalty. This treats ordered, cyclic and nominal factors the same, whatever their
    number of values, while an R^2 of the one-hot values themselves would fall with it. Solved in its dual form,
    N x N, for all factors at once.

    Args:
        train_images: Images (N, C, H, W), uint8 or float, N > 3.
        train_factors: Factors (N, K) int.
        test_images: Images (M, C, H, W) of the same scale.
        test_factors: Factors (M, K) int.

    Returns:
        (K,) in [0, 1]: 0 = each value has its own direction, 1 = no linear trace; NaN for a factor with one value in
        either set. A level of V even values that moves the pixels along one line stays at 1 - 1 / (V - 1), a circle
        in a plane at 1 - 2 / (V - 1), because the other directions between values are not linear.

    Raises:
        ValueError: The shapes do not fit, there are too few images, or images are not finite.

    Example:
        >>> factors = np.arange(80)[:, None] % 4
        >>> images = (factors[:, :, None, None] * np.ones((2, 2))).astype(np.uint8)
        >>> factor_complexity(images[:60], factors[:60], images[60:], factors[60:]).round(2)
        array([0.])
    """
    _check(train_images, train_factors, test_images, test_factors)
    train, test = (images.reshape(len(images), -1).astype(np.float32) for images in (train_images, test_images))
    center = train.mean(axis=0)
    train, test = train - center, test - center
    gram, cross = (train @ train.T).astype(np.float64), (test @ train.T).astype(np.float64)
    values = [np.unique(column) for column in np.concatenate([train_factors, test_factors]).T]
    train_onehot, test_onehot = (
        [(factors[:, k, None] == each).astype(np.float64) for k, each in enumerate(values)]
        for factors in (train_factors, test_factors)
    )
    contrasts = _easiest_contrasts(gram, train_onehot)
    complexity = np.full(len(values), np.nan)
    for penalty in sorted({contrast.penalty for contrast in contrasts}):
        columns = [k for k, contrast in enumerate(contrasts) if contrast.penalty == penalty]
        predictions = _predict(gram, cross, [train_onehot[k] for k in columns], penalty)
        for k, prediction in zip(columns, predictions, strict=True):
            if varies(train_factors[:, k]) and varies(test_factors[:, k]):
                truth, predicted = test_onehot[k] @ contrasts[k].weights, prediction @ contrasts[k].weights
                spread = float(((truth - truth.mean()) ** 2).sum())
                complexity[k] = min(float(((truth - predicted) ** 2).sum()) / spread, 1) if spread > 0 else 1
    return complexity


def _easiest_contrasts(gram: Floats, targets: list[Floats]) -> list[_Contrast]:
    """Return the contrast of each target that a quarter of the images predicts best by a fit to the others."""
    # A permutation, because a split by position would tear a factor that cycles along the rows.
    held_out = np.random.default_rng(0).permutation(len(gram)) % 4 == 0
    inner, outer = gram[np.ix_(~held_out, ~held_out)], gram[np.ix_(held_out, ~held_out)]
    contrasts: list[list[_Contrast]] = [[] for _ in targets]
    for penalty in _PENALTIES:
        predictions = _predict(inner, outer, [target[~held_out] for target in targets], penalty)
        for candidates, target, prediction in zip(contrasts, targets, predictions, strict=True):
            candidates.append(_easiest_contrast(target[held_out], prediction, penalty))
    return [min(candidates, key=lambda contrast: contrast.unexplained) for candidates in contrasts]


def _easiest_contrast(truth: Floats, prediction: Floats, penalty: float) -> _Contrast:
    """Return the w with the least |(truth - prediction) w|^2 / |(truth - mean) w|^2 for one-hot values (N, V)."""
    if truth.shape[1] < 2:
        return _Contrast(float("inf"), penalty, np.ones(1))
    # The last weight is 0, because adding a constant to all weights changes nothing.
    error, centered = (truth - prediction)[:, :-1], (truth - truth.mean(axis=0))[:, :-1]
    spread = centered.T @ centered
    spread += np.eye(len(spread)) * (1e-6 * np.trace(spread) + 1e-12)
    values, vectors = eigh(error.T @ error, spread)
    return _Contrast(float(values[0]), penalty, np.append(vectors[:, 0], 0.0))


def _predict(gram: Floats, cross: Floats, targets: list[Floats], penalty: float) -> list[Floats]:
    """Return ridge predictions for the rows of `cross` (M, N) from the inner products `gram` (N, N)."""
    stacked = np.concatenate(targets, axis=1)
    mean = stacked.mean(axis=0)
    regularized = gram + np.eye(len(gram)) * (penalty * np.trace(gram) / len(gram) + 1e-12)
    predictions = cross @ cho_solve(cho_factor(regularized, overwrite_a=True), stacked - mean) + mean
    return np.split(predictions, np.cumsum([target.shape[1] for target in targets])[:-1], axis=1)


def _check(train_images: Images, train_factors: Factors, test_images: Images, test_factors: Factors) -> None:
    for images, factors in ((train_images, train_factors), (test_images, test_factors)):
        if images.ndim != 4 or factors.ndim != 2 or len(images) != len(factors) or not images.size:
            raise ValueError(
                f"images, factors: got shapes {images.shape}, {factors.shape}. "
                "Pass (N, C, H, W) and (N, K) with the same N > 0."
            )
        if not np.isfinite(images.astype(np.float32)).all():
            raise ValueError("images: some values are not finite. Pass finite images.")
    if train_images.shape[1:] != test_images.shape[1:] or train_factors.shape[1] != test_factors.shape[1]:
        raise ValueError(
            f"train, test: got images {train_images.shape}, {test_images.shape} and factors {train_factors.shape}, "
            f"{test_factors.shape}. Pass the same C, H, W and K."
        )
    if len(train_images) < 4:
        raise ValueError(f"train_images: got shape {train_images.shape}. Pass at least 4 images.")
