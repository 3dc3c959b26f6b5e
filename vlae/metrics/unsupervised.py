"""Dependence between latents, without factors, as Locatello et al. 2019 report it.

Lower is better, but a code without information gets 0 too.
"""

import numpy as np

from vlae.metrics._discretization import discretize, pairwise_information
from vlae.metrics._validation import Array, Floats, check_codes, varies

# Smallest eigenvalue of a correlation matrix that counts as above 0: at 1e-12 the residual of a latent after regression
# on the others has a millionth of its standard deviation, while float32 rounds to a ten-millionth.
_MIN_EIGENVALUE = 1e-12


def gaussian_total_correlation(codes: Array) -> float:
    """Compute the total correlation of the Gaussian fitted to the codes, -0.5 log det of their correlations.

    0.5 (sum_j log var_j - log det cov) = KL(N(0, cov) || N(0, diag cov)); independent of the latents' scales.

    Args:
        codes: Posterior means (N, D) float; constant latents are left out.

    Returns:
        Nats, at least 0, lower is better; 0 = uncorrelated, or fewer than two latents vary. Infinite where a latent
        is a linear function of others (a duplicate, or N <= D).

    Raises:
        ValueError: Codes are not a matrix with rows, or not finite.

    References:
        Watanabe, "Information Theoretical Analysis of Multivariate Correlation", IBM Journal of Research and
        Development 4(1), 1960; Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> gaussian_total_correlation(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
        0.0
    """
    correlations, _ = _correlations_and_scales(codes)
    if len(correlations) < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(correlations)
    if eigenvalues[0] < _MIN_EIGENVALUE:
        return float("inf")
    return max(0.0, float(-0.5 * np.log(eigenvalues).sum()))


def gaussian_wasserstein_correlation(codes: Array, *, normalize: bool = False) -> float:
    """Compute the squared 2-Wasserstein distance from the codes' Gaussian to the product of its marginals.

    2 tr cov - 2 tr (diag^1/2 cov diag^1/2)^1/2, with diag the diagonal of cov. Defined where the total correlation is
    infinite; depends on the latents' scales.

    Args:
        codes: Posterior means (N, D) float; constant latents add nothing.
        normalize: Whether to divide by tr cov, so that a common scale of all latents does not matter.

    Returns:
        At least 0 in squared units of the codes, lower is better; in [0, 2) if `normalize`, where D copies of one
        latent get 2 - 2 / sqrt(D). 0 = uncorrelated, or fewer than two latents vary.

    Raises:
        ValueError: As `gaussian_total_correlation`.

    References:
        Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of Disentangled
        Representations", ICML 2019, arXiv:1811.12359.

    Example:
        >>> codes = np.repeat(np.arange(5.0)[:, None], 4, axis=1)
        >>> round(gaussian_wasserstein_correlation(codes, normalize=True), 6)
        1.0
    """
    correlations, scales = _correlations_and_scales(codes)
    if len(scales) < 2:
        return 0.0
    # diag^1/2 cov diag^1/2 in units of the largest latent, whose square may overflow.
    relative = scales / scales.max()
    product = np.outer(relative**2, relative**2) * correlations
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0))
    normalized = max(0.0, float(2 - 2 * roots.sum() / (relative**2).sum()))
    return normalized if normalize else normalized * float((scales**2).sum())


def mean_pairwise_mutual_information(codes: Array, *, bins: int = 20) -> float:
    """Compute the mean over the pairs of latents of I(z_i; z_j), each latent cut into bins of equal width.

    Args:
        codes: Posterior means (N, D) float; the pairs of a constant latent have 0.
        bins: Number of bins per latent, with the edges of `mutual_information`.

    Returns:
        Nats in [0, log bins], lower is better; independent latents of N rows have up to about (bins - 1)^2 / 2N by
        chance. NaN with fewer than two latents.

    Raises:
        ValueError: As `gaussian_total_correlation`, the range of a latent overflows, or there is no bin.

    References:
        Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of Disentangled
        Representations", ICML 2019, arXiv:1811.12359.

    Example:
        >>> mean_pairwise_mutual_information(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
        0.0
    """
    check_codes(codes)
    if codes.shape[1] < 2:
        return float("nan")
    labels = discretize(codes, bins)
    pairs = np.triu_indices(codes.shape[1], 1)
    return float(pairwise_information(labels, labels).information[pairs].mean())


def _correlations_and_scales(codes: Array) -> tuple[Floats, Floats]:
    """Return correlations (V, V) and standard deviations (V,) of the V latents that vary."""
    check_codes(codes)
    varying = codes[:, varies(codes)].astype(np.float64)
    sizes = np.abs(varying).max(axis=0)  # divided out first, because squares of the codes may overflow
    centered = varying / sizes
    centered -= centered.mean(axis=0)
    deviations = np.sqrt((centered**2).mean(axis=0))
    centered /= deviations
    correction = len(codes) / max(len(codes) - 1, 1)  # variances over N - 1, as in numpy.cov; one row does not vary
    return centered.T @ centered / len(codes), deviations * sizes * np.sqrt(correction)
