"""Scores of codes alone: do the latents depend on one another? No factors are needed.

As Locatello et al. 2019 report them. Low is better, but a code that tells nothing gets 0 too.
"""

import numpy as np

from vlae.metrics._discretization import bin_labels, count_information
from vlae.metrics._validation import Array, check_codes

# Smallest eigenvalue of a correlation matrix that is told from 0: what is left of a latent once the others are
# known has a deviation of a millionth of its own, float32 rounds to a ten-millionth.
SINGULAR = 1e-12


def gaussian_total_correlation(codes: Array) -> float:
    """Total correlation (Watanabe 1960) of the Gaussian fitted to the codes: -0.5 log det of their correlations.

    0.5 (sum_j log var_j - log det cov) = KL(N(0, cov) || N(0, diag cov)); does not depend on the latents' scales.

    Args:
        codes: (N, D) float, posterior means. Constant latents are left out.

    Raises:
        ValueError: not a matrix with rows, or codes that are not finite.

    Returns:
        Nats, at least 0; 0 = uncorrelated, or fewer than two latents vary. Infinite where a latent is a linear
        function of others (a duplicate, or N <= D): the smallest eigenvalue of the correlations is below 1e-12.
    """
    correlations, _ = _fitted(codes)
    if len(correlations) < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(correlations)
    if eigenvalues[0] < SINGULAR:
        return float("inf")
    return max(0.0, float(-0.5 * np.log(eigenvalues).sum()))


def gaussian_wasserstein_correlation(codes: Array, *, normalize: bool = False) -> float:
    """Squared 2-Wasserstein distance from the Gaussian fitted to the codes to the product of its marginals.

    2 tr cov - 2 tr (diag^1/2 cov diag^1/2)^1/2, diag = the diagonal of cov. Defined where the total correlation
    is infinite; depends on the latents' scales.

    Args:
        codes: (N, D) float, posterior means. Constant latents add nothing.
        normalize: divide by tr cov, so that a common scale of all latents does not matter.

    Raises:
        ValueError: as `gaussian_total_correlation`.

    Returns:
        In squared units of the codes, at least 0, or in [0, 2) if `normalize`, where D copies of one latent get
        2 - 2 / sqrt(D). 0 = uncorrelated, or fewer than two latents vary.
    """
    correlations, scales = _fitted(codes)
    if len(scales) < 2:
        return 0.0
    # diag^1/2 cov diag^1/2 in units of the largest latent, whose square may not be a number.
    relative = scales / scales.max()
    product = np.outer(relative**2, relative**2) * correlations
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0))
    share = max(0.0, float(2 - 2 * roots.sum() / (relative**2).sum()))
    return share if normalize else share * float((scales**2).sum())


def mean_pairwise_mutual_information(codes: Array, *, bins: int = 20) -> float:
    """Mean over the pairs of latents of their mutual information, each cut into `bins` bins of equal width.

    Args:
        codes: (N, D) float, posterior means. Constant latents count: their pairs have 0.
        bins: per latent, edges as for `mutual_information`.

    Raises:
        ValueError: as `gaussian_total_correlation`, a range that overflows, or fewer than one bin.

    Returns:
        Nats, in [0, log bins]; independent latents of N rows have up to about (bins - 1)^2 / 2N by chance. NaN with
        fewer than two latents.
    """
    check_codes(codes)
    if codes.shape[1] < 2:
        return float("nan")
    labels = bin_labels(codes, bins)
    pairs = np.triu_indices(codes.shape[1], 1)
    return float(count_information(labels, labels).information[pairs].mean())


def _fitted(codes: Array) -> tuple[Array, Array]:
    """Correlations (V, V) and standard deviations (V,) of the V latents that vary, float64."""
    check_codes(codes)
    varying = codes[:, codes.max(axis=0) > codes.min(axis=0)].astype(np.float64)
    sizes = np.abs(varying).max(axis=0)  # divided out first: squares of the codes may overflow
    centerd = varying / sizes
    centerd -= centerd.mean(axis=0)
    deviations = np.sqrt((centerd**2).mean(axis=0))
    centerd /= deviations
    correction = len(codes) / max(len(codes) - 1, 1)  # variances over N - 1, as numpy.cov; of one row none varies
    return centerd.T @ centerd / len(codes), deviations * sizes * np.sqrt(correction)
