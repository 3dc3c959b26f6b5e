"""IDX files, and other files of a header and equal items of bytes, plain or as .gz, read in ranges.

References:
    LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998, "file formats".
"""

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.decoding import check_shape
from jobs.data.formats.published import invalid_file, open_plain_or_gzip
from jobs.errors import UserError

_BATCH = 256  # items in memory at once

# Reads the header of an open file up to the first item. Returns the shape of all items, the count first.
HeaderReader = Callable[[Path, BufferedIOBase], tuple[int, ...]]


def read_idx_header(path: Path, file: BufferedIOBase) -> tuple[int, ...]:
    """Return the shape in the header of an IDX file of bytes: big-endian sizes, last index fastest."""
    magic = file.read(4)
    rank = magic[3] if len(magic) == 4 else 0
    sizes = file.read(4 * rank)
    if magic[:3] != b"\0\0\x08" or not 1 <= rank <= 4 or len(sizes) != 4 * rank:
        raise UserError(invalid_file(path, "not an IDX file of bytes (magic number)"))
    shape = struct.unpack(f">{rank}I", sizes)
    check_shape(shape)
    return shape


@dataclass(frozen=True)
class ByteArray:
    """A file of a header and equal items of bytes, whose content is uncompressed if the name ends with .gz."""

    path: Path
    read_header: HeaderReader

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the header, the number of items first; an invalid header raises a UserError."""
        with open_plain_or_gzip(self.path) as file:
            return self.read_header(self.path, file)

    def validate_length(self) -> None:
        """Read the file to its end; damage, or a length other than in its header, raises a UserError."""
        with open_plain_or_gzip(self.path) as file:
            shape = self.read_header(self.path, file)
            length = sum(len(chunk) for chunk in iter(lambda: file.read(2**20), b""))
        if length != math.prod(shape):
            raise UserError(
                invalid_file(self.path, f"{length:,} bytes instead of {math.prod(shape):,} for shape {shape}")
            )

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the items start..stop-1 in arrays (n, ...) uint8 of at most 256 items."""
        with open_plain_or_gzip(self.path) as file:
            shape = self.read_header(self.path, file)
            size = math.prod(shape[1:])
            file.seek(start * size, os.SEEK_CUR)
            for begin in range(start, stop, _BATCH):
                count = min(_BATCH, stop - begin)
                content = file.read(count * size)
                if len(content) != count * size:
                    raise UserError(invalid_file(self.path, f"ends before item {stop:,} of shape {shape[1:]}"))
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
