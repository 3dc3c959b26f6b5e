"""The BetaVAE score: can the fixed factor be told from how far the codes of pairs lie apart?"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from vlae.metrics._factor_sampling import CodeSource, EncodedPool, Indices
from vlae.metrics._validation import Array, Factors

Floats = NDArray[np.float64]

_VOTES_AT_ONCE = 256  # their codes stay in the cache


def beta_vae_score(
    codes: Array,
    factors: Factors,
    *,
    seed: int,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    pairs: int = 64,
) -> float:
    """Accuracy of a linear classifier of the fixed factor from differences of codes (Higgins et al. 2017, section 3).

    For each vote a factor is picked and pairs of rows, each pair with a value of that factor in common; the vote is
    the mean absolute difference of each latent over the pairs. Logistic regression (multinomial, C = 1, the default of
    scikit-learn) on differences that are not standardized, as in Locatello et al. 2019: the penalty hides latents of
    scales below about .01. Only differences with a deviation above 1 are brought to 1, where the penalty is next to
    nothing already: Newton's method then finds the optimum, whatever the scales. All rows come from the one pool that
    is given; `beta_vae_score_from` draws new images instead.

    Args:
        codes: (N, D) float, posterior means.
        factors: (N, K) int; factors without two values that at least two rows share are left out.
        seed: of the draws.
        train_votes: that the classifier is fitted to.
        eval_votes: that are counted.
        pairs: per vote.

    Returns:
        In [0, 1], higher is better; about 1 / K for useless or constant codes; NaN if fewer than two factors vary.
        A lenient score: rotated codes, several factors in one latent and one factor that is held by none still get 1.

    Raises:
        ValueError: shapes that do not fit, no latents, codes that are not finite, or no votes or pairs.
    """
    return beta_vae_score_from(
        EncodedPool(codes, factors), seed=seed, train_votes=train_votes, eval_votes=eval_votes, pairs=pairs
    )


def beta_vae_score_from(
    source: CodeSource, *, seed: int, train_votes: int = 10_000, eval_votes: int = 5_000, pairs: int = 64
) -> float:
    """`beta_vae_score` with the pairs from any source, such as `FreshImages`."""
    if min(train_votes, eval_votes, pairs) < 1:
        raise ValueError(f"need votes and pairs, got {train_votes}, {eval_votes}, {pairs}")
    if source.factors < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    fixed, distances = _distances(source, train_votes, pairs, rng)
    new_fixed, new_distances = _distances(source, eval_votes, pairs, rng)
    if np.ptp(fixed) == 0 or not np.ptp(distances, axis=0).any():  # few votes, or constant codes: nothing to fit
        return float((new_fixed == np.bincount(fixed).argmax()).mean())
    # With the intercept free the center is of no account, and at unit deviation the penalty hardly is.
    center, scale = distances.mean(axis=0), np.maximum(distances.std(axis=0), 1)
    fitted = LogisticRegression(solver="newton-cholesky").fit((distances - center) / scale, fixed)
    return float((fitted.predict((new_distances - center) / scale) == new_fixed).mean())


def _distances(source: CodeSource, votes: int, pairs: int, rng: np.random.Generator) -> tuple[Indices, Floats]:
    """The factor fixed in each vote, (V,), and the mean absolute difference in each latent, (V, D)."""
    fixed = rng.integers(source.factors, size=votes)
    parts = []
    for start in range(0, votes, _VOTES_AT_ONCE):
        some = fixed[start : start + _VOTES_AT_ONCE]
        first, second = source.pairs(np.repeat(some, pairs), rng)
        parts.append(np.abs(first - second).reshape(len(first), len(some), pairs).mean(axis=2).T)
    return fixed, np.concatenate(parts)
