"""The FactorVAE score: which latent stands still where one factor is fixed?"""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._factor_sampling import CodeSource, EncodedPool, Indices
from vlae.metrics._validation import Array, Factors

Floats = NDArray[np.float64]

_ROUNDING = 1e-6  # of the largest code: a float32 network gives no finer differences
_SMALL = 0.05  # of the largest standard deviation
_OWNED = 0.1  # of a latent's variance: what its own factor leaves of it
_VOTES_AT_ONCE = 256  # their codes stay in the cache


def factor_vae_score(
    codes: Array,
    factors: Factors,
    *,
    seed: int,
    active: NDArray[np.bool_] | None = None,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    batch: int = 64,
) -> float:
    """Can the fixed factor be told from the latent that varies least? (Kim, Mnih 2018, section 4)

    For each vote a factor is picked, a value of it, and a batch of rows that share it. The vote goes to the live
    latent that keeps the smallest share of its variance. The classifier learns the factor that each latent's votes
    were most often about, and the score is how often that is right for new votes. All rows come from the one pool that
    is given; `factor_vae_score_from` draws new images instead.

    Which latents are live is best told from the KL divergence of each (above .01 nat): give `active`. Without it, dead
    are latents that are constant but for rounding, and those whose standard deviation is below .05 of the largest
    unless fixing some factor takes nine tenths of their variance. Where the largest is about 1, as in a VAE, this is
    the absolute .05 of Locatello et al. 2019, but small latents that hold one factor live, and so do codes of any
    scale. It fails for a collapsed latent whose mean still follows one factor neatly (kept), and for a small live
    latent that is noisy or mixes factors beside a large one (dropped).

    Args:
        codes: (N, D) float, posterior means.
        factors: (N, K) int; factors without two values that at least two rows share are left out.
        seed: of the draws.
        active: (D,), True where a latent is live; constant ones are dead all the same.
        train_votes: that teach the classifier.
        eval_votes: that are counted.
        batch: rows per vote.

    Returns:
        In [0, 1], higher is better; about 1 / K for useless codes; 0 if all latents are dead; NaN if fewer than two
        factors vary. Duplicated latents cost nothing, and a rotated code can still get 1: each latent only has to
        stand still for one factor more than the others do.

    Raises:
        ValueError: shapes that do not fit, no latents, codes that are not finite, no votes or a batch below 2.
    """
    return factor_vae_score_from(
        EncodedPool(codes, factors),
        seed=seed,
        active=active,
        train_votes=train_votes,
        eval_votes=eval_votes,
        batch=batch,
    )


def factor_vae_score_from(
    source: CodeSource,
    *,
    seed: int,
    active: NDArray[np.bool_] | None = None,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    batch: int = 64,
) -> float:
    """`factor_vae_score` with the batches from any source, such as `FreshImages`."""
    if min(train_votes, eval_votes) < 1 or batch < 2:
        raise ValueError(f"need votes and a batch of at least 2, got {train_votes}, {eval_votes}, {batch}")
    if source.factors < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    global_sample = source.global_sample(rng)
    if active is not None and active.shape != global_sample.shape[:1]:
        raise ValueError(f"active must be ({len(global_sample)},), got {active.shape}")
    variance = global_sample.var(axis=1, ddof=1)
    moving = np.sqrt(variance) > _ROUNDING * np.abs(global_sample).max(axis=1)
    fixed, shares = _shares(source, variance, train_votes, batch, rng)
    live = moving & (_live(variance, fixed, shares, source.factors) if active is None else active)
    if not live.any():
        return 0.0
    votes = np.zeros((int(live.sum()), source.factors), np.int64)
    np.add.at(votes, (shares[live].argmin(axis=0), fixed), 1)
    classifier = votes.argmax(axis=1)
    fixed, shares = _shares(source, variance, eval_votes, batch, rng)
    return float((classifier[shares[live].argmin(axis=0)] == fixed).mean())


def _shares(
    source: CodeSource, variance: Floats, votes: int, batch: int, rng: np.random.Generator
) -> tuple[Indices, Floats]:
    """The factor fixed in each vote, (V,), and the share of each latent's variance that the batch keeps, (D, V)."""
    fixed = rng.integers(source.factors, size=votes)
    kept = np.empty((len(variance), votes))
    for start in range(0, votes, _VOTES_AT_ONCE):
        some = slice(start, start + _VOTES_AT_ONCE)
        kept[:, some] = source.batches(fixed[some], batch, rng).var(axis=2, ddof=1)
    return fixed, kept / np.where(variance > 0, variance, 1)[:, None]


def _live(variance: Floats, fixed: Indices, shares: Floats, factors: int) -> NDArray[np.bool_]:
    """Latents that are not small, or that some factor accounts for: (D,)."""
    least = np.min([shares[:, fixed == k].mean(axis=1) for k in range(factors) if (fixed == k).any()], axis=0)
    return np.asarray((np.sqrt(variance) >= _SMALL * np.sqrt(variance.max())) | (least < _OWNED))
