"""Arrays inside an .npz, read a few rows at a time: np.load would hold the whole array."""

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jobs.errors import UserError

_BLOCK = 4 * 2**20  # bytes that are read at once
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field


@dataclass(frozen=True)
class NpzArray:
    """A C-ordered array of numbers in an .npz.

    Args:
        path: of the .npz.
        name: of the array, without .npy.
        shape: from the array's header.
        dtype: from the array's header.
        stored: the member is not compressed, so that any row is reached by a seek.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: bool

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Rows start..stop-1 in read-only arrays of a few megabytes.

        Raises:
            UserError: the file is damaged or ends early.
        """
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _BLOCK // row)
        with _member(self.path, self.name) as (stream, base, _):
            read_npy_header(stream)
            stream.seek(stream.tell() + start * row)
            for begin in range(start, stop, step):
                count = min(step, stop - begin)
                content = stream.read(count * row)
                if len(content) != count * row:
                    raise EOFError(f"it ends at byte {stream.tell() - base} of {self.name}")
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def find_npz_array(path: Path, name: str, dtype: str, row_shape: tuple[int, ...]) -> NpzArray:
    """The array `name` of shape (N, *row_shape).

    Raises:
        UserError: the file is damaged, has no such array, or one of another shape or type.
    """
    with _member(path, name) as (stream, base, info):
        try:
            shape, found, fortran = read_npy_header(stream)
        except ValueError as error:
            raise UserError(f"{path} has no readable array {name} ({error}): put the published file there") from error
        if found != np.dtype(dtype) or fortran or len(shape) == 0 or shape[1:] != row_shape:
            raise UserError(
                f"{path} has {name} of {found} {shape}, not {dtype} (N, {', '.join(map(str, row_shape))}): "
                "put the published file there"
            )
        if info.file_size != stream.tell() - base + math.prod(shape) * found.itemsize:
            raise UserError(f"{path} has {name} of {info.file_size} bytes, not of shape {shape}: fetch it again")
    return NpzArray(path, name, shape, found, info.compress_type == zipfile.ZIP_STORED)


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and whether it is in Fortran order, of the .npy that begins here.

    Raises:
        ValueError: it is no .npy of version 1 or 2, or it holds objects, which would be a pickle.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy of version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 wrote
        shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype, fortran


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], int, zipfile.ZipInfo]]:
    """The member's content as a stream, and where in it the .npy begins; what is wrong with it is a UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                # zipfile would read all that lies before a row; the file itself can seek.
                with path.open("rb") as file:
                    base = _content_start(file, info)
                    file.seek(base)
                    yield file, base, info
            else:
                with archive.open(info) as stream:
                    yield stream, 0, info
    except KeyError as error:
        raise UserError(f"{path} has no array {name}: put the published file there") from error
    # RuntimeError is a password's, NotImplementedError a compression's that zipfile does not know.
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, struct.error, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error


def _content_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the content of a member begins: its local header may be longer than the archive's directory says."""
    file.seek(info.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile("no member where its directory says")
    return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)
