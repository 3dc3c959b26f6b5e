"""Codes sorted once for all trees, and how functions on them are compiled."""

import inspect
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

BINS = 128  # at most 256: bins are numbered in uint8
GAP = np.float32(1e-7)  # neighbors no further apart are one value, as in scikit-learn

Floats = NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` compiled by numba when it is first called, or as a part of what calls it."""
    return _jit(function, cache=False)


def cached(*modules: ModuleType) -> Callable[[Function], Function]:
    """As `compiled`, and kept on disk for other processes if numba finds a folder to write to.

    Numba notices changes only in the file of the function itself. `modules` are the others that it calls compiled
    functions of: their source becomes part of the name it is kept under, so that no stale copy of them is used.
    """

    def decorate(function: Function) -> Function:
        try:
            source = "".join(inspect.getsource(module) for module in modules)
            function.__qualname__ += f"_{zlib.crc32(source.encode()):08x}"
            return _jit(function, cache=True)
        except (OSError, RuntimeError):  # no source, no folder
            return compiled(function)

    return decorate


def _jit(function: Function, *, cache: bool) -> Function:
    jitted: Any = njit(cache=cache, nogil=True, error_model="numpy")(function)
    return jitted  # type: ignore[no-any-return]


class Binned(NamedTuple):
    """Codes (N, D) float32 and, for each latent, its rows in order of their value, cut into bins.

    columns (D, N) float32: the codes. order (D, N) int32: rows. values (D, N) float32: sorted. starts (D, BINS + 1)
    int32: first place of each bin in the order. wide (D, BINS) bool: could be split inside. by_row (N, D) and by_latent
    (D, N) uint8: bin of each code. counts (D, BINS) float64: rows.
    """

    columns: NDArray[np.float32]
    order: NDArray[np.int32]
    values: NDArray[np.float32]
    starts: NDArray[np.int32]
    wide: NDArray[np.bool_]
    by_row: NDArray[np.uint8]
    by_latent: NDArray[np.uint8]
    counts: Floats


def binned(codes: NDArray[np.float32]) -> Binned:
    """Codes (N, D) float32, finite, sorted and cut into bins of about equal numbers of rows."""
    columns = np.ascontiguousarray(codes.T)
    order = np.argsort(columns, axis=1, kind="stable").astype(np.int32)
    values = np.take_along_axis(columns, order, axis=1)
    starts = np.full((len(columns), BINS + 1), len(codes), np.int32)
    wide = np.zeros((len(columns), BINS), np.bool_)
    by_latent = np.empty(columns.shape, np.uint8)
    _cut(order, values, starts, wide, by_latent)
    counts = np.diff(starts, axis=1).astype(np.float64)
    return Binned(columns, order, values, starts, wide, np.ascontiguousarray(by_latent.T), by_latent, counts)


@cached()
def _cut(
    order: NDArray[np.int32],
    values: NDArray[np.float32],
    starts: NDArray[np.int32],
    wide: NDArray[np.bool_],
    by_latent: NDArray[np.uint8],
) -> None:
    """A new bin begins where the last has its share of rows and the value changes."""
    latents, rows = order.shape
    share = (rows + BINS - 1) // BINS
    for j in range(latents):
        number, start = 0, 0
        starts[j, 0] = 0
        for i in range(rows):
            if i - start >= share and values[j, i] > values[j, i - 1] + GAP:
                number, start = number + 1, i
                starts[j, number] = i
            wide[j, number] = values[j, i] > values[j, start] + GAP
            by_latent[j, order[j, i]] = number
