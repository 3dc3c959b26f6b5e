"""Arrays inside an HDF5 file, read in long slices, because HDF5 decompresses a whole chunk for every access to it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.decoding import MAX_DECODED, check_shape, decoding
from jobs.data.formats.published import FIX_HINT, invalid_file
from jobs.errors import UserError

# Publishers let HDF5 choose the chunks, which then hold a few pixels each of 20,000 images or more.
_BLOCK = 64 * 2**20  # bytes that are read at once


@dataclass(frozen=True)
class Hdf5Array:
    """A dataset of an HDF5 file, whose name includes its groups."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Yield the rows start..stop-1 in arrays of at most 64 MiB that end with a chunk where chunks are shorter."""
        with _open_dataset(self.path, self.name) as dataset:
            row = math.prod(self.shape[1:]) * dataset.dtype.itemsize
            step = max(1, _BLOCK // row)
            if dataset.chunks and dataset.chunks[0] <= step:
                step -= step % dataset.chunks[0]
            while start < stop:
                end = min(start - start % step + step, stop)
                yield dataset[start:end]
                start = end


def find_hdf5_array(path: Path, name: str, dtype: str, row_shape: tuple[int, ...]) -> Hdf5Array:
    """Return the dataset `name` (with its groups) of shape (N, *row_shape) and this type, or raise a UserError."""
    with _open_dataset(path, name) as dataset:
        shape, actual = dataset.shape, dataset.dtype
        check_shape(shape or ())  # h5py has None for a dataset without a shape
        chunks = dataset.chunks
        if chunks and math.prod(chunks) * actual.itemsize > MAX_DECODED:
            raise ValueError(f"chunks of {chunks} {actual} are too large")
        # HDF5 returns zeros for what was never written.
        expected = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks or shape, strict=True))
        if (dataset.id.get_num_chunks() if chunks else dataset.id.get_storage_size()) < expected:
            raise ValueError("a part of the array was never written")
    if actual != np.dtype(dtype) or not shape or shape[1:] != row_shape:
        expected = f"{dtype} (N, {', '.join(map(str, row_shape))})"
        raise UserError(invalid_file(path, f"array {name} is {actual} {shape} instead of {expected}"))
    return Hdf5Array(path, name, shape)


@contextmanager
def _open_dataset(path: Path, name: str) -> Iterator[Any]:
    """Open a dataset; any failure within the `with` block is a UserError."""
    with decoding(f"{path}: array {name}", FIX_HINT), h5py.File(path, "r", locking="best-effort") as file:
        node = file
        for component in name.split("/"):
            # Only hard links, because a file may link to other files of the reader's machine.
            inside = isinstance(node, h5py.Group) and isinstance(node.get(component, getlink=True), h5py.HardLink)
            node = node[component] if inside else None
        if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external:
            raise UserError(invalid_file(path, f"array {name} not found"))
        yield node
