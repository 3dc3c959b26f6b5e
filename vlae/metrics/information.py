"""Metrics from the mutual information of single latents with single factors."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._discretization import PairwiseInformation, discretize, factor_labels, pairwise_information
from vlae.metrics._validation import Array, Factors, Floats, active_latents, check_rows, varies


def entropy(values: NDArray[np.integer]) -> float:
    """Compute the entropy of the empirical distribution, H = -sum_v p_v log p_v.

    Args:
        values: Values (N,) int.

    Returns:
        Nats, in [0, log N].

    Example:
        >>> round(entropy(np.array([0, 0, 1, 1])), 4)
        0.6931
    """
    counts = np.unique(values, return_counts=True)[1]
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def mutual_information(codes: Array, factors: Factors, *, bins: int = 20) -> Floats:
    """Compute I(z_j; v_k) by counting, each latent cut into bins of equal width.

    The edges are those of `numpy.histogram` on the dtype of the codes.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int.
        bins: Number of bins per latent, at least 1; may exceed N.

    Returns:
        Nats (D, K) in [0, min(log bins, H(v_k))]; exactly 0 for a constant latent or factor, and below 1e-12.

    Raises:
        ValueError: The shapes do not fit, there are no latents or no bins, or codes are not finite or their range
            overflows their dtype.

    References:
        Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of Disentangled
        Representations", ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> mutual_information(factors.astype(float), factors).round(4)
        array([[0.6931, 0.    ],
               [0.    , 0.6931]])
    """
    check_rows(codes, factors)
    return pairwise_information(discretize(codes, bins), factor_labels(factors)).information


def _varying_information(codes: Array, factors: Factors, bins: int) -> PairwiseInformation:
    # Factors with one value have no entropy to normalize by.
    check_rows(codes, factors)
    return pairwise_information(discretize(codes, bins), factor_labels(factors[:, varies(factors)]))


def _gap(information: Floats) -> Floats:
    """Return the largest minus the second largest entry of the last axis, which is 0 where there is only one."""
    ordered = np.sort(information, axis=-1)
    return np.asarray(ordered[..., -1] - (ordered[..., -2] if information.shape[-1] > 1 else 0.0))


def mig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Compute the mutual information gap (MIG): is each factor held by one latent?

    MIG = 1/K sum_k (I_(1)k - I_(2)k) / H(v_k), with I_(1)k >= I_(2)k the two largest I(z_j; v_k).

    Args:
        codes: Posterior means (N, D) float; with one latent the second largest information is 0.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per latent. A perfect code stays below 1 where a factor has more values than bins.

    Returns:
        In [0, 1], higher is better; NaN if no factor varies.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", NeurIPS 2018, eq. 6,
        arXiv:1802.04942; binning of Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> round(mig_score(factors.astype(float), factors), 6)
        1.0
    """
    gaps = mig_per_factor(codes, factors, bins=bins)
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.mean()) if len(gaps) else float("nan")


def mig_per_factor(codes: Array, factors: Factors, *, bins: int = 20) -> Floats:
    """Compute the mutual information gap of each factor, (I_(1)k - I_(2)k) / H(v_k).

    The mean over some of the factors is the MIG of papers that leave factors out, such as Chen et al. 2018, who
    leave out the shape of dSprites.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int.
        bins: Number of bins per latent.

    Returns:
        (K,) in [0, 1], higher is better; NaN for a factor with one value.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", NeurIPS 2018,
        arXiv:1802.04942.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> mig_per_factor(factors[:, :1].astype(float), factors).round(6)
        array([1., 0.])
    """
    check_rows(codes, factors)
    information, _, entropies = pairwise_information(discretize(codes, bins), factor_labels(factors))
    with np.errstate(invalid="ignore"):
        return _gap(information.T) / entropies


def mig_sup_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Compute MIG-sup: does each active latent hold one factor?

    The mean over the active latents of the gap between the two largest I(z_j; v_k) / H(v_k). A latent is active if
    its variance exceeds `BURDA_ACTIVE_VARIANCE`.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per latent.

    Returns:
        In [0, 1], higher is better; 0 if no latent is active; NaN if fewer than two factors vary.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Li et al., "Progressive Learning and Disentanglement of Hierarchical Representations", ICLR 2020,
        arXiv:2002.10549.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> round(mig_sup_score(factors.astype(float), factors), 6)
        1.0
    """
    information, _, entropies = _varying_information(codes, factors, bins)
    if len(entropies) < 2:
        return float("nan")
    active = active_latents(codes)
    return float(_gap(information[active] / entropies).mean()) if active.any() else 0.0


def modularity_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Compute the modularity: does each latent depend on one factor only?

    The mean over the latents of 1 - (sum_k I_jk^2 - max_k I_jk^2) / (max_k I_jk^2 (K - 1)), 0 for a latent without
    information. Not comparable between codes with more and fewer inactive latents: a perfect code with as many
    constant latents has half the score, and noise about .7, because its counts are uneven by chance.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per latent.

    Returns:
        In [0, 1], higher is better; NaN if fewer than two factors vary.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss", NeurIPS 2018,
        section 3, arXiv:1802.05312.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> modularity_score(factors.astype(float), factors)
        1.0
    """
    squares = _varying_information(codes, factors, bins).information ** 2
    num_factors = squares.shape[1]
    if num_factors < 2:
        return float("nan")
    largest = squares.max(axis=1)
    informative = largest > 0
    rest = (squares.sum(axis=1) - largest)[informative] / (largest[informative] * (num_factors - 1))
    return float((1 - rest).sum() / len(squares))


def dcimig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Compute DCIMIG (3CharM): how much of the factors is held by latents of their own?

    sum_k max_j gap_j / sum_k H(v_k): each latent j is assigned to the factor k of its largest information, and gap_j
    is the distance to the next factor.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per latent.

    Returns:
        In [0, 1], higher is better; duplicated and constant latents do not change it; NaN if fewer than two factors
        vary.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Sepliarskaia, Kiseleva and de Rijke, "How to Not Measure Disentanglement", 2019, arXiv:1910.05587.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> round(dcimig_score(factors.astype(float), factors), 6)
        1.0
    """
    information, _, entropies = _varying_information(codes, factors, bins)
    if len(entropies) < 2:
        return float("nan")
    largest_gaps = np.zeros(len(entropies))
    np.maximum.at(largest_gaps, information.argmax(axis=1), _gap(information))
    return float(largest_gaps.sum() / entropies.sum())


def jemmig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Compute JEMMIG: is each factor held by one latent that holds nothing else?

    Joint entropy minus mutual information gap, normalized so that higher is better: the mean over the factors of
    1 - (H(v_k, z_j*) - I_(1)k + I_(2)k) / (H(v_k) + log bins), with j* the latent of the largest information. Among
    equally informative latents j* has the smallest joint entropy, so that their order does not matter.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per latent.

    Returns:
        In [0, 1], higher is better; 1 = every value of a factor has a bin of its latent to itself. A constant code
        gets log bins / (H(v_k) + log bins) instead of 0, because it adds nothing to the joint entropy: read it
        beside other metrics only. NaN if no factor varies.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Do and Tran, "Theory and Evaluation Metrics for Learning Disentangled Representations", ICLR 2020,
        arXiv:1908.09961.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> round(jemmig_score(factors.astype(float), factors, bins=2), 6)
        1.0
    """
    information, latent_entropies, entropies = _varying_information(codes, factors, bins)
    if not len(entropies):
        return float("nan")
    joint = latent_entropies[:, None] + entropies - information
    largest = information > information.max(axis=0) - 1e-9  # equal but for rounding
    smallest_joint = np.where(largest, joint, np.inf).min(axis=0)
    return float((1 - (smallest_joint - _gap(information.T)) / (entropies + np.log(bins))).mean())
