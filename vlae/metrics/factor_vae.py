"""FactorVAE metric: which latent varies least where one factor is fixed?"""

import numpy as np

from vlae.metrics._factor_sampling import VOTES_PER_CHUNK, Indices, PoolSampler
from vlae.metrics._validation import Array, Factors, Floats, Mask

# Standard deviation, relative to the largest, below which a latent is inactive unless a factor explains it: Locatello
# et al. 2019, arXiv:1811.12359, take an absolute .05, which is the same where the largest is 1.
LOCATELLO_ACTIVE_STD = 0.05
_ROUNDING = 1e-6  # of the largest code, because a float32 network gives no smaller differences
_EXPLAINED = 0.1  # fraction of a latent's variance that its own factor leaves at most


def factor_vae_score(
    codes: Array,
    factors: Factors,
    *,
    seed: int,
    active: Mask | None = None,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    batch: int = 64,
) -> float:
    """Compute the FactorVAE metric from one pool of encoded images.

    Each vote fixes a random factor and draws a batch of rows with a common value of it. The vote goes to the active
    latent that keeps the smallest fraction of its variance. The classifier maps each latent to the factor of most of
    its train votes; the metric is its accuracy on new votes.

    The mean KL of each latent (above `SONDERBY_ACTIVE_KL`) defines best which latents are active: pass `active`.
    Without it, a latent is inactive if it is constant but for rounding, or if its standard deviation is below
    `LOCATELLO_ACTIVE_STD` of the largest and no fixed factor takes nine tenths of its variance. The exception keeps
    small latents of one factor, and codes of any scale. It fails for a collapsed latent whose mean still follows one
    factor (kept), and for a small active latent that is noisy or mixes factors beside a large one (left out).

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors without two values that at least two rows share are left out.
        seed: Random seed for the votes.
        active: Mask (D,) of the active latents; constant latents are always inactive.
        train_votes: Number of votes that the classifier is fitted to, at least 1.
        eval_votes: Number of votes that it is evaluated on, at least 1.
        batch: Number of rows per vote, at least 2.

    Returns:
        In [0, 1], higher is better; about 1 / K for useless codes; 0 if all latents are inactive; NaN if fewer than
        two factors vary. Duplicated latents do not change it, and a rotated code can still get 1, because each latent
        only has to vary less for one factor than the others do.

    Raises:
        ValueError: The shapes do not fit, there are no latents or votes, codes are not finite, or the batch is
            below 2.

    References:
        Kim and Mnih, "Disentangling by Factorising", ICML 2018, section 4, arXiv:1802.05983.

    Example:
        >>> factors = np.random.default_rng(0).integers(4, size=(500, 2))
        >>> factor_vae_score(factors.astype(float), factors, seed=0, train_votes=500, eval_votes=500)
        1.0
    """
    if min(train_votes, eval_votes) < 1 or batch < 2:
        raise ValueError(
            f"train_votes, eval_votes, batch: got {train_votes}, {eval_votes}, {batch}. "
            "Pass at least 1 vote of each and a batch of at least 2."
        )
    sampler = PoolSampler(codes, factors)
    if sampler.num_factors < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    if active is not None and active.shape != codes.shape[1:]:
        raise ValueError(f"active: got shape {active.shape}. Pass {codes.shape[1:]}, an entry per latent.")
    global_sample = sampler.global_sample
    variance = global_sample.var(axis=1, ddof=1)
    fixed, fractions = _variance_fractions(sampler, variance, train_votes, batch, rng)
    if active is None:
        by_factor = [fractions[:, fixed == k].mean(axis=1) for k in range(sampler.num_factors) if (fixed == k).any()]
        large = np.sqrt(variance) >= LOCATELLO_ACTIVE_STD * np.sqrt(variance.max())
        active = large | (np.min(by_factor, axis=0) < _EXPLAINED)
    active = active & (np.sqrt(variance) > _ROUNDING * np.abs(global_sample).max(axis=1))
    if not active.any():
        return 0.0
    votes = np.zeros((int(active.sum()), sampler.num_factors), np.int64)
    np.add.at(votes, (fractions[active].argmin(axis=0), fixed), 1)
    classifier = votes.argmax(axis=1)
    fixed, fractions = _variance_fractions(sampler, variance, eval_votes, batch, rng)
    return float((classifier[fractions[active].argmin(axis=0)] == fixed).mean())


def _variance_fractions(
    sampler: PoolSampler, variance: Floats, votes: int, batch: int, rng: np.random.Generator
) -> tuple[Indices, Floats]:
    """Return the fixed factor of each vote, (V,), and the fraction of each latent's variance in its batch, (D, V)."""
    fixed = rng.integers(sampler.num_factors, size=votes)
    variances = np.empty((len(variance), votes))
    for start in range(0, votes, VOTES_PER_CHUNK):
        chunk = slice(start, start + VOTES_PER_CHUNK)
        variances[:, chunk] = sampler.fixed_factor_batches(fixed[chunk], batch, rng).var(axis=2, ddof=1)
    return fixed, variances / np.where(variance > 0, variance, 1)[:, None]
