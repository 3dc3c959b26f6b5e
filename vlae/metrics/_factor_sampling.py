"""Where the votes of FactorVAE and BetaVAE come from: codes of images that share the value of one factor."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, check_rows

Indices = NDArray[np.integer]
Floats = NDArray[np.float64]
Images = TypeVar("Images")

OVERVIEW = 10_000  # images that tell how each latent varies where nothing is fixed
_IMAGES_AT_ONCE = 1024


class CodeSource(Protocol):
    """Codes of images with one factor fixed, latents first, for the variance of a batch to run along memory."""

    @property
    def factors(self) -> int:
        """How many factors can be fixed; they are numbered from 0."""

    def global_sample(self, rng: np.random.Generator) -> Floats:
        """Codes of images at random, (D, M)."""

    def batches(self, fixed: Indices, size: int, rng: np.random.Generator) -> Floats:
        """For each factor of `fixed` (G,), `size` images that share a random value of it, (D, G, size)."""

    def pairs(self, fixed: Indices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """For each factor of `fixed` (G,), two images that share a random value of it, (D, G) each."""


class EncodedPool:
    """Rows that were encoded once, found again by the values of their factors.

    A value is drawn as often as the pool holds it, and a batch is drawn from the rows with that value, with
    replacement: the share of a latent's variance that is left keeps its mean however few they are. The two rows of a
    pair differ: where a value is rare, a row beside itself would tell the factor by a difference of 0. For the same
    reason values that one row alone has are never drawn, and a factor whose values are all but one of this kind, or
    that has one value only, is left out.

    Args:
        codes: (N, D) float.
        factors: (N, K) int.

    Raises:
        ValueError: shapes that do not fit, no latents, or codes that are not finite.
    """

    def __init__(self, codes: Array, factors: Factors) -> None:
        check_rows(codes, factors)
        self._codes = np.ascontiguousarray(_latents_first(codes))
        tables = [table for table in map(_Table, factors.T) if table.values > 1]
        self._rows = np.concatenate([table.rows for table in tables] or [np.empty(0, np.intp)])
        self._lengths = np.array([len(table.rows) for table in tables], np.intp)
        self._offsets = np.cumsum(self._lengths) - self._lengths
        shifted = [table.starts + offset for table, offset in zip(tables, self._offsets, strict=True)]
        self._starts = np.concatenate(shifted or [np.empty(0, np.intp)])
        self._counts = np.concatenate([table.counts for table in tables] or [np.empty(0, np.intp)])

    @property
    def factors(self) -> int:
        return len(self._lengths)

    def global_sample(self, rng: np.random.Generator) -> Floats:  # noqa: ARG002 all rows, no chance
        return self._codes

    def batches(self, fixed: Indices, size: int, rng: np.random.Generator) -> Floats:
        anchors = self._anchors(fixed, rng)
        starts, counts = self._starts[anchors, None], self._counts[anchors, None]
        members = starts + (rng.random((len(fixed), size)) * counts).astype(np.intp)
        found: Floats = self._codes.take(self._rows[members], axis=1)
        return found

    def pairs(self, fixed: Indices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        anchors = self._anchors(fixed, rng)
        starts, counts = self._starts[anchors], self._counts[anchors]
        steps = 1 + (rng.random(len(fixed)) * (counts - 1)).astype(np.intp)
        others = starts + (anchors - starts + steps) % counts
        return self._codes.take(self._rows[anchors], axis=1), self._codes.take(self._rows[others], axis=1)

    def _anchors(self, fixed: Indices, rng: np.random.Generator) -> Indices:
        """Places in the tables, (G,): a random row for each factor, hence a value as often as it occurs."""
        return self._offsets[fixed] + (rng.random(len(fixed)) * self._lengths[fixed]).astype(np.intp)


class FreshImages(Generic[Images]):
    """New images for every vote, as in the published protocols: 97 times more to encode than a pool of 10,000 rows.

    Args:
        encode: images of B rows -> codes (B, D) float.
        sample: factors (B, K) int64 -> the images that show them; it may draw at random what the factors leave open.
        sizes: how many values each factor has; they are drawn evenly from 0 to size - 1. A factor with one value is
            never fixed.

    Raises:
        ValueError: sizes below 1, or (when it draws) codes that are not finite or not (B, D).
    """

    def __init__(
        self, encode: Callable[[Images], Array], sample: Callable[[Factors], Images], sizes: Sequence[int]
    ) -> None:
        if min(sizes, default=0) < 1:
            raise ValueError(f"every factor needs a size of at least 1, got {tuple(sizes)}")
        self._encode, self._sample = encode, sample
        self._sizes = np.array(sizes, np.int64)
        self._varying = np.flatnonzero(self._sizes > 1)

    @property
    def factors(self) -> int:
        return len(self._varying)

    def global_sample(self, rng: np.random.Generator) -> Floats:
        return self._codes(self._draw(OVERVIEW, rng))

    def batches(self, fixed: Indices, size: int, rng: np.random.Generator) -> Floats:
        factors = self._draw(len(fixed) * size, rng).reshape(len(fixed), size, -1)
        columns = self._varying[fixed]
        factors[np.arange(len(fixed)), :, columns] = factors[np.arange(len(fixed)), :1, columns]
        found = self._codes(factors.reshape(len(fixed) * size, -1))
        return found.reshape(len(found), len(fixed), size)

    def pairs(self, fixed: Indices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        found = self.batches(fixed, 2, rng)
        return found[..., 0], found[..., 1]

    def _draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.integers(self._sizes, size=(rows, len(self._sizes)))

    def _codes(self, factors: NDArray[np.int64]) -> Floats:
        parts = [factors[start : start + _IMAGES_AT_ONCE] for start in range(0, len(factors), _IMAGES_AT_ONCE)]
        codes = [np.asarray(self._encode(self._sample(part))) for part in parts]
        for part, code in zip(parts, codes, strict=True):
            check_rows(code, part)
        return np.concatenate([_latents_first(code) for code in codes], axis=1)


class _Table:
    """Rows by the value of one factor: `rows` sorted by it, and for each place where its value starts and how often.

    Only values of two rows and more are kept.
    """

    def __init__(self, column: Indices) -> None:
        _, index, seen = np.unique(column, return_inverse=True, return_counts=True)
        order = np.argsort(index, kind="stable")
        self.rows = order[seen[index[order]] > 1]
        kept = seen[seen > 1]
        self.values = len(kept)
        self.counts = np.repeat(kept, kept)
        self.starts = np.repeat(np.cumsum(kept) - kept, kept)


def _latents_first(codes: Array) -> Floats:
    """(D, N) float64: squares of small and large codes stay in range."""
    if not codes.shape[1]:
        raise ValueError(f"codes need at least one latent, got {codes.shape}")
    return codes.T.astype(np.float64)
