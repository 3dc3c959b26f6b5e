"""Codes rotated within a rung to independent axes, because the prior N(0, I) does not fix the rotation."""

import warnings

import numpy as np
from scipy.linalg import polar
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from vlae.metrics._validation import Array, Floats, active_latents, check_codes
from vlae.metrics.unsupervised import gaussian_total_correlation

_CONTRASTS = ("logcosh", "cube")
_STARTS = 3  # per contrast, because a single start may end in the wrong optimum


def independent_axes(codes: Array) -> Floats:
    """Rotate the codes of one rung so that the latents are as independent as a rotation can make them.

    The rotation nearest to the unmixing matrix of independent component analysis (FastICA), the best of several
    starts by the sum of the components' squared excess kurtoses: for uncorrelated components it is highest where
    their total correlation is lowest. Factors are not used.

    Args:
        codes: Posterior means (N, D) float of one rung. Latents with a variance below `BURDA_ACTIVE_VARIANCE` are
            inactive and not rotated.

    Returns:
        (N, D) float64, centered where rotated; the codes themselves where fewer than two latents are active or an
        active latent is a linear function of others. The same codes give the same result.

    Raises:
        ValueError: Codes are not a finite matrix with rows.

    References:
        Hyvarinen, "Fast and Robust Fixed-Point Algorithms for Independent Component Analysis", IEEE Transactions on
        Neural Networks 10(3), 1999; Comon, "Independent Component Analysis, a New Concept?", Signal Processing 36(3),
        1994.

    Example:
        >>> sources = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
        >>> axes = independent_axes(sources @ np.array([[0.8, 0.6], [-0.6, 0.8]]))
        >>> bool((np.abs(np.corrcoef(sources.T, axes.T)[:2, 2:]).max(axis=1) > 0.99).all())
        True
    """
    check_codes(codes)
    rotated = codes.astype(np.float64)
    active = active_latents(rotated)
    centered = rotated[:, active] - rotated[:, active].mean(axis=0)
    if active.sum() < 2 or not np.isfinite(gaussian_total_correlation(centered)):
        return rotated
    unmixings = []
    for fun in _CONTRASTS:
        for seed in range(_STARTS):
            analysis = FastICA(whiten="unit-variance", fun=fun, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # because Gaussian codes have no best rotation
                unmixings.append(np.asarray(analysis.fit(centered).components_))
    best = max(unmixings, key=lambda unmixing: _squared_kurtoses(centered @ unmixing.T))
    rotation, _ = polar(best)  # the unmixing matrix is a rotation times a scaling
    rotated[:, active] = centered @ rotation.T
    return rotated


def _squared_kurtoses(components: Floats) -> float:
    kurtoses = ((components / components.std(axis=0)) ** 4).mean(axis=0) - 3
    return float((kurtoses**2).sum())
