"""Codes up to a rotation of each rung, about which N(0, I) as its prior says nothing."""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import polar
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from vlae.metrics._validation import Array, check_codes, live
from vlae.metrics.unsupervised import gaussian_total_correlation

_CONTRASTS = ("logcosh", "cube")
_STARTS = 3  # of each: one alone may end in the wrong optimum


def independent_axes(codes: Array) -> NDArray[np.float64]:
    """One rung's codes, turned so that the latents are as independent as a rotation can make them.

    The rotation next to what independent component analysis finds (FastICA: Hyvaerinen 1999), the best of several
    starts by the sum of the components' squared excess kurtoses (Comon 1994): as they are not correlated, it is
    highest where their total correlation is lowest. Factors are not looked at.

    Args:
        codes: (N, D) float, posterior means of one rung. Latents with a variance below 0.01 stay as they are.

    Raises:
        ValueError: as `check_codes`.

    Returns:
        (N, D), centerd where they are turned; the codes themselves where fewer than two latents are active or one is
        a linear function of others. The same codes give the same answer.
    """
    check_codes(codes)
    found = codes.astype(np.float64)
    active = live(found)
    inside = found[:, active] - found[:, active].mean(axis=0)
    if active.sum() < 2 or not np.isfinite(gaussian_total_correlation(inside)):
        return found
    starts = [(contrast, seed) for contrast in _CONTRASTS for seed in range(_STARTS)]
    unmixing = max((_unmixing(inside, *start) for start in starts), key=lambda matrix: _contrast(inside @ matrix.T))
    rotation, _ = polar(unmixing)  # of a scaling after a rotation: the rotation
    found[:, active] = inside @ rotation.T
    return found


def _unmixing(codes: NDArray[np.float64], contrast: str, seed: int) -> NDArray[np.float64]:
    analysis = FastICA(whiten="unit-variance", fun=contrast, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Gaussian codes have no best rotation
        analysis.fit(codes)
    return np.asarray(analysis.components_)


def _contrast(components: NDArray[np.float64]) -> float:
    kurtosis = ((components / components.std(axis=0)) ** 4).mean(axis=0) - 3
    return float((kurtosis**2).sum())
