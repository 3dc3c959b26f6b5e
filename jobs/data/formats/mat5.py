"""Arrays in MATLAB 5 files, as streams: SciPy holds all of an array in memory, and damaged files crash it.

The format: a header of 128 bytes, then elements of a tag (type, length) and data. An array is an element of
type miMATRIX, which holds elements again: flags, sizes, name, data. It may be inside miCOMPRESSED, a zlib stream.
"""

import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO

import numpy as np

from jobs.data.formats.binary_arrays import FIX_HINT
from jobs.errors import UserError

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15  # types of elements
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_FIRST_NUMERIC_CLASS = 6  # those before are cells, structures, objects, text and sparse arrays
_COMPLEX = 0x800
_CHUNK = 2**18  # bytes
_LONGEST = 2**12  # bytes of sizes or of a name

Reader = Callable[[int], bytes]  # gives the next bytes, fewer only at the end


class MatArray:
    """An array of numbers, its data not yet read.

    Args:
        shape: sizes of the indices, the first running fastest.
        dtype: of the numbers as stored, which may be shorter than those that MATLAB shows.
        read: gives the data.
        compressed: whether `read` comes to an end, at most seven bytes of padding after the data.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Reader, *, compressed: bool) -> None:
        self.shape, self.dtype = shape, dtype
        self._read, self._compressed = read, compressed

    def read(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            EOFError: there are fewer.
        """
        return _exactly(self._read, count)

    def skip(self, count: int) -> None:
        """Pass over `count` bytes, decompressing them."""
        for begin in range(0, count, _CHUNK):
            self.read(min(_CHUNK, count - begin))

    def finish(self) -> None:
        """After the last byte: reach the end of a compressed stream, where its checksum is verified.

        Raises:
            EOFError: it has no end there.
        """
        if self._compressed and len(self._read(8)) == 8:
            raise EOFError("compressed data go on after the array")


class _Inflated:
    """The content of a compressed element, `num_bytes` long in the file."""

    def __init__(self, file: BufferedIOBase, num_bytes: int) -> None:
        self._file, self._left = file, num_bytes
        self._inflate = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        parts = []
        while count and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail
            if not compressed:
                compressed = self._file.read(min(_CHUNK, self._left))
                self._left -= len(compressed)
            part = self._inflate.decompress(compressed, count)
            if not part and not compressed:
                raise EOFError("compressed data end early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@contextmanager
def array_of(label: str, file: BufferedIOBase, name: str) -> Iterator[MatArray]:
    """The array called `name`.

    Args:
        label: how messages call the file.
        file: the whole of a MATLAB 5 file; it can seek.
        name: of the variable.

    Raises:
        UserError: the file is no MATLAB 5 file, has no such array, or is damaged, also while the array is in use.
    """
    try:
        yield _find(label, file, name)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{label} is damaged ({getattr(error, 'strerror', None) or error}): {FIX_HINT}") from error


def _find(label: str, file: BufferedIOBase, name: str) -> MatArray:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(file.read(128)[124:])
    if order is None:
        raise UserError(f"{label} is not a MATLAB 5 file: {FIX_HINT}")
    while file.tell() < size:
        kind, num_bytes = struct.unpack(f"{order}II", _exactly(file.read, 8))
        end = file.tell() + num_bytes
        if end > size:
            raise EOFError(f"{size:,} bytes, and there should be {end:,} or more")
        read: Reader = file.read
        compressed = kind == _COMPRESSED
        if compressed:
            read = _Inflated(file, num_bytes).read
            kind = struct.unpack(f"{order}II", _exactly(read, 8))[0]
        if kind == _MATRIX:
            found = _array(label, read, order, name, compressed=compressed)
            if found is not None:
                return found
        file.seek(end)
    raise UserError(f"{label} has no variable {name}: {FIX_HINT}")


def _array(label: str, read: Reader, order: str, name: str, *, compressed: bool) -> MatArray | None:
    """The array whose element starts here, or None if it has another name."""
    flags = _element(read, order, _UINT32)
    sizes = _element(read, order, _INT32)
    if _element(read, order, _INT8) != name.encode():
        return None
    flag = struct.unpack_from(f"{order}I", flags)[0]
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, num_bytes, inline = _tag(read, order)
    if flag & 0xFF < _FIRST_NUMERIC_CLASS or flag & _COMPLEX or kind not in _STORED:
        raise UserError(f"{label} has a {name} that is not an array of real numbers: {FIX_HINT}")
    dtype = np.dtype(order + _STORED[kind])
    if min(shape, default=0) < 0 or num_bytes != math.prod(shape) * dtype.itemsize:
        raise struct.error(f"{num_bytes} bytes for {name} of shape {shape}")
    if inline is not None:
        return MatArray(shape, dtype, BytesIO(inline).read, compressed=False)
    return MatArray(shape, dtype, read, compressed=compressed)


def _element(read: Reader, order: str, expected: int) -> bytes:
    """The data of a short element."""
    kind, num_bytes, inline = _tag(read, order)
    if kind != expected or num_bytes > _LONGEST:
        raise struct.error(f"an element of type {kind} and {num_bytes} bytes where type {expected} should be")
    return _exactly(read, -(-num_bytes // 8) * 8)[:num_bytes] if inline is None else inline


def _tag(read: Reader, order: str) -> tuple[int, int, bytes | None]:
    """Type and length of an element, and its data if they are few enough to stand in the tag."""
    tag = _exactly(read, 8)
    kind, num_bytes = struct.unpack(f"{order}II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, num_bytes, None


def _exactly(read: Reader, count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        raise EOFError("an array ends early")
    return data
