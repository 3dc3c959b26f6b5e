"""Codes of images that share the value of one factor, for the votes of FactorVAE and BetaVAE."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, Floats, check_rows

Indices = NDArray[np.integer]

VOTES_PER_CHUNK = 256  # because the codes of a chunk then stay in the processor's cache


class PoolSampler:
    """Sampler of encoded rows that share the value of one factor.

    A value is drawn as often as the pool has it. The rows of a batch are drawn from those with the value, with
    replacement, so that the expected fraction of a latent's variance that is left does not depend on their number.
    The two rows of a pair differ, because a rare value would otherwise be recognized by a difference of 0. For the
    same reason, values of a single row are never drawn; a factor without two other values is left out. Latents come
    first in all arrays, so that the variance of a batch runs along memory.

    Args:
        codes: Codes (N, D) float.
        factors: Factors (N, K) int.

    Raises:
        ValueError: The shapes do not fit, there are no latents, or codes are not finite.
    """

    def __init__(self, codes: Array, factors: Factors) -> None:
        check_rows(codes, factors)
        # float64 keeps the squares of small and large codes in range.
        self._codes = np.ascontiguousarray(codes.T.astype(np.float64))
        rows: list[Indices] = []
        starts: list[Indices] = []
        counts: list[Indices] = []
        lengths: list[int] = []
        for column in factors.T:
            _, index, sizes = np.unique(column, return_inverse=True, return_counts=True)
            order = np.argsort(index, kind="stable")
            repeated = sizes[sizes > 1]
            if len(repeated) > 1:
                rows.append(order[sizes[index[order]] > 1])
                starts.append(sum(lengths) + np.repeat(np.cumsum(repeated) - repeated, repeated))
                counts.append(np.repeat(repeated, repeated))
                lengths.append(int(repeated.sum()))
        # One table for all factors: rows sorted by value, and for each of them the first index and the number of
        # the rows with its value.
        empty = [np.empty(0, np.intp)]
        self._rows, self._starts, self._counts = (np.concatenate(each or empty) for each in (rows, starts, counts))
        self._lengths = np.array(lengths, np.intp)
        self._offsets = np.cumsum(self._lengths) - self._lengths

    @property
    def num_factors(self) -> int:
        """Number of factors that can be fixed, counted from 0."""
        return len(self._lengths)

    @property
    def global_sample(self) -> Floats:
        """Codes of all rows, (D, N)."""
        return self._codes

    def fixed_factor_batches(self, fixed: Indices, size: int, rng: np.random.Generator) -> Floats:
        """Return `size` rows with a random common value of each factor of `fixed` (G,), (D, G, size)."""
        anchors = self._anchors(fixed, rng)
        starts, counts = self._starts[anchors, None], self._counts[anchors, None]
        members = starts + (rng.random((len(fixed), size)) * counts).astype(np.intp)
        return np.asarray(self._codes.take(self._rows[members], axis=1))

    def fixed_factor_pairs(self, fixed: Indices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return two rows with a random common value of each factor of `fixed` (G,), (D, G) each."""
        anchors = self._anchors(fixed, rng)
        starts, counts = self._starts[anchors], self._counts[anchors]
        steps = 1 + (rng.random(len(fixed)) * (counts - 1)).astype(np.intp)
        others = starts + (anchors - starts + steps) % counts
        return self._codes.take(self._rows[anchors], axis=1), self._codes.take(self._rows[others], axis=1)

    def _anchors(self, fixed: Indices, rng: np.random.Generator) -> Indices:
        """Return a random index of the table for each factor, (G,), hence a value as often as it occurs."""
        return self._offsets[fixed] + (rng.random(len(fixed)) * self._lengths[fixed]).astype(np.intp)
