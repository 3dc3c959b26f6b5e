"""Arrays inside an HDF5 file, read in long slices: a compressed chunk is unpacked whole for every touch of it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jobs.errors import UserError

# Publishers let HDF5 choose the chunks, which then hold a few pixels each of 20,000 images or more.
_BLOCK = 64 * 2**20  # bytes that are read at once


@dataclass(frozen=True)
class Hdf5Array:
    """A dataset of an HDF5 file.

    Args:
        path: of the file.
        name: of the dataset, with its groups.
        shape: of the dataset.
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Rows start..stop-1 in arrays of at most 64 MiB, cut at the borders of chunks where these are shorter.

        Raises:
            UserError: the file is damaged.
        """
        with _dataset(self.path, self.name) as dataset:
            row = math.prod(self.shape[1:]) * dataset.dtype.itemsize
            step = max(1, _BLOCK // row)
            if dataset.chunks and dataset.chunks[0] <= step:
                step -= step % dataset.chunks[0]
            while start < stop:
                end = min(start - start % step + step, stop)
                yield dataset[start:end]
                start = end


def find_hdf5_array(path: Path, name: str, dtype: str, row_shape: tuple[int, ...]) -> Hdf5Array:
    """The dataset `name` of shape (N, *row_shape).

    Raises:
        UserError: the file is damaged, has no such dataset, or one of another shape or type.
    """
    with _dataset(path, name) as dataset:
        shape, found = dataset.shape, dataset.dtype
    if found != np.dtype(dtype) or not shape or shape[1:] != row_shape:
        raise UserError(
            f"{path} has {name} of {found} {shape}, not {dtype} (N, {', '.join(map(str, row_shape))}): "
            "put the published file there"
        )
    return Hdf5Array(path, name, shape)


@contextmanager
def _dataset(path: Path, name: str) -> Iterator[Any]:
    """The dataset, open; what is wrong with it is a UserError."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            found = file
            for part in name.split("/"):
                # A file may name other files, which are none of its publisher's business.
                inside = isinstance(found, h5py.Group) and isinstance(found.get(part, getlink=True), h5py.HardLink)
                found = found[part] if inside else None
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise UserError(f"{path} has no array {name}: put the published file there")
            yield found
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
