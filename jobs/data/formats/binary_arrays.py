"""Files of a header and equal items of bytes, plain or as .gz: found, opened, and read in ranges."""

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.errors import UserError

FIX_HINT = "put the official file in its place"
_BATCH = 256  # items in memory at once

# Reads the header of an open file, up to the first item: the shape of all items, the count first.
HeaderReader = Callable[[Path, BufferedIOBase], tuple[int, ...]]


def find_file(folder: Path, name: str) -> Path | None:
    """The file in `folder`, plain or .gz, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """The content of a file, uncompressed if it is a .gz.

    Raises:
        UserError: it cannot be read or is damaged, now or while the file is in use.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({getattr(error, 'strerror', None) or error}): {FIX_HINT}") from error


def read_shape(path: Path, read_header: HeaderReader) -> tuple[int, ...]:
    """The shape that a file's header states.

    Raises:
        UserError: the file cannot be read or the header is not of the format.
    """
    with opened(path) as file:
        return read_header(path, file)


def check_length(path: Path, read_header: HeaderReader) -> None:
    """Read a file of bytes to its end.

    Raises:
        UserError: it is damaged, or not as long as its header says.
    """
    with opened(path) as file:
        shape = read_header(path, file)
        length = sum(len(chunk) for chunk in iter(lambda: file.read(2**20), b""))
    if length != math.prod(shape):
        raise UserError(f"{path} should hold {math.prod(shape):,} bytes of shape {shape}, not {length:,}: {FIX_HINT}")


def read_items(path: Path, read_header: HeaderReader, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Items start..stop-1 of a file of bytes, some at a time: (n, ...) uint8.

    Raises:
        UserError: it is damaged or ends too early.
    """
    with opened(path) as file:
        shape = read_header(path, file)
        size = math.prod(shape[1:])
        file.seek(start * size, os.SEEK_CUR)
        for begin in range(start, stop, _BATCH):
            count = min(_BATCH, stop - begin)
            content = file.read(count * size)
            if len(content) != count * size:
                raise UserError(f"{path} ends before item {stop:,} of shape {shape[1:]}: {FIX_HINT}")
            yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
