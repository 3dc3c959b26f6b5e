"""Codes sorted and binned once for all trees, and the decorators that compile functions on them."""

import inspect
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

BINS = 128  # at most 256, because bins are stored as uint8
GAP = np.float32(1e-7)  # closer neighbors are one value, as in scikit-learn

Floats = NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return the function compiled by numba at its first call, or as a callee of a compiled function."""
    return _jit(function, cache=False)


def cached(*modules: ModuleType) -> Callable[[Function], Function]:
    """Return a decorator as `compiled` that keeps the machine code on disk if numba finds a writable folder.

    The source of `modules`, whose compiled functions the function calls, becomes part of the cache's key, because numba
    detects changes only in the file of the function itself.
    """

    def decorate(function: Function) -> Function:
        try:
            source = "".join(inspect.getsource(module) for module in modules)
            function.__qualname__ += f"_{zlib.crc32(source.encode()):08x}"
            return _jit(function, cache=True)
        except (OSError, RuntimeError):  # there is no source, or no folder to write to
            return compiled(function)

    return decorate


def _jit(function: Function, *, cache: bool) -> Function:
    jitted: Any = njit(cache=cache, nogil=True, error_model="numpy")(function)
    return jitted  # type: ignore[no-any-return]


class BinnedCodes(NamedTuple):
    """Codes (N, D) and, for each latent, its rows sorted by value and cut into bins.

    Attributes:
        columns: (D, N) float32, the codes.
        order: (D, N) int32, rows sorted by value.
        values: (D, N) float32, sorted.
        starts: (D, BINS + 1) int32, index of each bin's first row in the order.
        splittable: (D, BINS) bool, whether the bin has more than one value.
        by_row: (N, D) uint8, bin of each code.
        by_latent: (D, N) uint8, its transpose.
        counts: (D, BINS) float64, rows.
    """

    columns: NDArray[np.float32]
    order: NDArray[np.int32]
    values: NDArray[np.float32]
    starts: NDArray[np.int32]
    splittable: NDArray[np.bool_]
    by_row: NDArray[np.uint8]
    by_latent: NDArray[np.uint8]
    counts: Floats


def bin_codes(codes: NDArray[np.float32]) -> BinnedCodes:
    """Return finite codes (N, D) sorted and cut into bins of about equal numbers of rows."""
    columns = np.ascontiguousarray(codes.T)
    order = np.argsort(columns, axis=1, kind="stable").astype(np.int32)
    values = np.take_along_axis(columns, order, axis=1)
    starts = np.full((len(columns), BINS + 1), len(codes), np.int32)
    splittable = np.zeros((len(columns), BINS), np.bool_)
    by_latent = np.empty(columns.shape, np.uint8)
    _fill_bins(order, values, starts, splittable, by_latent)
    counts = np.diff(starts, axis=1).astype(np.float64)
    by_row = np.ascontiguousarray(by_latent.T)
    return BinnedCodes(columns, order, values, starts, splittable, by_row, by_latent, counts)


@cached()
def _fill_bins(
    order: NDArray[np.int32],
    values: NDArray[np.float32],
    starts: NDArray[np.int32],
    splittable: NDArray[np.bool_],
    by_latent: NDArray[np.uint8],
) -> None:
    """Begin a new bin where the last one is full and the value changes."""
    latents, rows = order.shape
    capacity = (rows + BINS - 1) // BINS
    for j in range(latents):
        b, start = 0, 0
        starts[j, 0] = 0
        for i in range(rows):
            if i - start >= capacity and values[j, i] > values[j, i - 1] + GAP:
                b, start = b + 1, i
                starts[j, b] = i
            splittable[j, b] = values[j, i] > values[j, start] + GAP
            by_latent[j, order[j, i]] = b
