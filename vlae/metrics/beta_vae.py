"""BetaVAE metric: can the fixed factor be classified from the distances between codes of pairs?"""

import numpy as np
from sklearn.linear_model import LogisticRegression

from vlae.metrics._factor_sampling import VOTES_PER_CHUNK, Indices, PoolSampler
from vlae.metrics._validation import Array, Factors, Floats


def beta_vae_score(
    codes: Array,
    factors: Factors,
    *,
    seed: int,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    pairs: int = 64,
) -> float:
    """Compute the BetaVAE metric from one pool of encoded images.

    Each vote fixes a random factor and draws pairs of rows, each pair with a common value of the factor; its input is
    the mean absolute difference of each latent over the pairs. The metric is the accuracy of a logistic regression
    (multinomial, C = 1) that predicts the fixed factor. As in Locatello et al., differences are not standardized, so
    that the penalty hides latents of scales below about .01.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors without two values that at least two rows share are left out.
        seed: Random seed for the votes.
        train_votes: Number of votes that the classifier is fitted to, at least 1.
        eval_votes: Number of votes that it is evaluated on, at least 1.
        pairs: Number of pairs per vote, at least 1.

    Returns:
        In [0, 1], higher is better; about 1 / K for useless or constant codes; NaN if fewer than two factors vary.
        A lenient metric: rotated codes, several factors in one latent, and one factor in no latent still get 1.

    Raises:
        ValueError: The shapes do not fit, there are no latents, votes or pairs, or codes are not finite.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR
        2017, section 3; protocol of Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.random.default_rng(0).integers(4, size=(500, 2))
        >>> beta_vae_score(factors.astype(float), factors, seed=0, train_votes=500, eval_votes=500)
        1.0
    """
    if min(train_votes, eval_votes, pairs) < 1:
        raise ValueError(
            f"train_votes, eval_votes, pairs: got {train_votes}, {eval_votes}, {pairs}. Pass at least 1 of each."
        )
    sampler = PoolSampler(codes, factors)
    if sampler.num_factors < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    fixed, distances = _distances(sampler, train_votes, pairs, rng)
    eval_fixed, eval_distances = _distances(sampler, eval_votes, pairs, rng)
    if np.ptp(fixed) == 0 or not np.ptp(distances, axis=0).any():  # LogisticRegression fits no single class
        return float((eval_fixed == np.bincount(fixed).argmax()).mean())
    # Only deviations above 1 are scaled to 1, where the penalty hardly acts: Newton's method then converges for any
    # scale. The center does not matter, because the intercept is free.
    center, scale = distances.mean(axis=0), np.maximum(distances.std(axis=0), 1)
    classifier = LogisticRegression(solver="newton-cholesky").fit((distances - center) / scale, fixed)
    return float((classifier.predict((eval_distances - center) / scale) == eval_fixed).mean())


def _distances(sampler: PoolSampler, votes: int, pairs: int, rng: np.random.Generator) -> tuple[Indices, Floats]:
    """Return the fixed factor of each vote, (V,), and the mean absolute difference in each latent, (V, D)."""
    fixed = rng.integers(sampler.num_factors, size=votes)
    distances = []
    for start in range(0, votes, VOTES_PER_CHUNK):
        chunk = fixed[start : start + VOTES_PER_CHUNK]
        first, second = sampler.fixed_factor_pairs(np.repeat(chunk, pairs), rng)
        distances.append(np.abs(first - second).reshape(len(first), len(chunk), pairs).mean(axis=2).T)
    return fixed, np.concatenate(distances)
