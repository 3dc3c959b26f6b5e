"""Arrays inside an .npz, read a few rows at a time, because np.load would hold the whole array in memory."""

import math
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.decoding import check_shape, decoding
from jobs.data.formats.published import FIX_HINT, invalid_file
from jobs.errors import UserError

_BLOCK = 4 * 2**20  # bytes that are read at once
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field


@dataclass(frozen=True)
class NpzArray:
    """A C-ordered array of numbers in an .npz; if it is `stored` (uncompressed), any row is reached by a seek."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: bool

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Yield the rows start..stop-1 in read-only arrays of a few megabytes."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _BLOCK // row)
        with _open_member(self.path, self.name) as (stream, base, _):
            read_npy_header(stream)
            stream.seek(stream.tell() + start * row)
            for begin in range(start, stop, step):
                count = min(step, stop - begin)
                content = stream.read(count * row)
                if len(content) != count * row:
                    raise UserError(invalid_file(self.path, f"ends at byte {stream.tell() - base} of {self.name}"))
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def find_npz_array(path: Path, name: str, dtype: str, row_shape: tuple[int, ...]) -> NpzArray:
    """Return the array `name` (without .npy) of shape (N, *row_shape) and this type, or raise a UserError."""
    with _open_member(path, name) as (stream, base, info):
        shape, actual, fortran = read_npy_header(stream)
        if actual != np.dtype(dtype) or fortran or len(shape) == 0 or shape[1:] != row_shape:
            expected = f"{dtype} (N, {', '.join(map(str, row_shape))})"
            raise UserError(invalid_file(path, f"array {name} is {actual} {shape} instead of {expected} in C order"))
        if info.file_size != stream.tell() - base + math.prod(shape) * actual.itemsize:
            reason = f"array {name} has {info.file_size} bytes, which does not match shape {shape} of {actual}"
            raise UserError(invalid_file(path, reason))
    return NpzArray(path, name, shape, actual, info.compress_type == zipfile.ZIP_STORED)


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return shape, type and Fortran order of the .npy at a stream's position, which moves to the first value.

    Raises:
        ValueError: The content is not an .npy of version 1 or 2, holds objects, which would be a pickle, or is empty.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy version {version} is not supported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy warns of headers that Python 2 wrote
        shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("Python objects are not supported")
    check_shape(shape)
    return shape, dtype, fortran


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[tuple[IO[bytes], int, zipfile.ZipInfo]]:
    """Open a member as a stream, with the offset of its .npy; any failure within the `with` block is a UserError."""
    with decoding(f"{path}: array {name}", FIX_HINT), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise UserError(invalid_file(path, f"array {name} not found"))
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            # The file itself can seek, whereas zipfile reads all that lies before a row.
            with path.open("rb") as file:
                base = _content_start(file, info)
                file.seek(base)
                yield file, base, info
        else:
            with archive.open(info) as stream:
                yield stream, 0, info


def _content_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Return where the content of a member begins, because its local header may be longer than the directory says."""
    file.seek(info.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile("no member at the offset in the directory")
    return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)
