"""Arrays in MATLAB 5 files as streams, because SciPy holds a whole array in memory and damaged files crash it.

The format: a header of 128 bytes, then elements of a tag (type, length) and data. An array is an element of type
miMATRIX, which holds elements again: flags, sizes, name, data. It may be inside miCOMPRESSED, a zlib stream.

References:
    MathWorks: MAT-File Format, "Level 5 MAT-File Format".
"""

import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO

import numpy as np

from jobs.data.formats.decoding import check_shape, decoding
from jobs.data.formats.published import FIX_HINT, invalid_file
from jobs.errors import UserError

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15  # types of elements
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_FIRST_NUMERIC_CLASS = 6  # lower classes are cells, structures, objects, text and sparse arrays
_COMPLEX = 0x800
_CHUNK = 2**18  # bytes
_LONGEST = 2**12  # bytes of sizes or of a name

Reader = Callable[[int], bytes]  # returns the next bytes, fewer only at the end


class MatArray:
    """An array of numbers whose data is read on request; the first index of the shape runs fastest.

    `dtype` is the stored type, which may be shorter than the type that MATLAB shows. If `compressed`, `read` ends at
    most seven bytes of padding after the data.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Reader, *, compressed: bool) -> None:
        self.shape, self.dtype = shape, dtype
        self._read, self._compressed = read, compressed

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes; data that ends early raises an EOFError."""
        return _read_exactly(self._read, count)

    def skip(self, count: int) -> None:
        """Decompress and discard the next `count` bytes."""
        for begin in range(0, count, _CHUNK):
            self.read(min(_CHUNK, count - begin))

    def finish(self) -> None:
        """Read a compressed stream to its end, where zlib verifies its checksum; further data raises an EOFError."""
        if self._compressed and len(self._read(8)) == 8:
            raise EOFError("compressed data continues after the array")


class _Inflated:
    """Reader of a compressed element that is `num_bytes` long in the file."""

    def __init__(self, file: BufferedIOBase, num_bytes: int) -> None:
        self._file, self._left = file, num_bytes
        self._inflate = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end."""
        chunks = []
        while count and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail
            if not compressed:
                compressed = self._file.read(min(_CHUNK, self._left))
                self._left -= len(compressed)
            chunk = self._inflate.decompress(compressed, count)
            if not chunk and not compressed:
                raise EOFError("compressed data ends early")
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)


@contextmanager
def open_mat_array(label: str, file: BufferedIOBase, name: str) -> Iterator[MatArray]:
    """Yield the variable `name` of a seekable file; all damage, also within the `with` block, raises a UserError."""
    with decoding(label, FIX_HINT):
        yield _find_array(label, file, name)


def _find_array(label: str, file: BufferedIOBase, name: str) -> MatArray:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(file.read(128)[124:])
    if order is None:
        raise UserError(invalid_file(label, "not a MATLAB 5 file"))
    while file.tell() < size:
        kind, num_bytes = struct.unpack(f"{order}II", _read_exactly(file.read, 8))
        end = file.tell() + num_bytes
        if end > size:
            raise EOFError(f"{size:,} bytes instead of {end:,} or more")
        read: Reader = file.read
        compressed = kind == _COMPRESSED
        if compressed:
            read = _Inflated(file, num_bytes).read
            kind = struct.unpack(f"{order}II", _read_exactly(read, 8))[0]
        if kind == _MATRIX:
            array = _array(label, read, order, name, compressed=compressed)
            if array is not None:
                return array
        file.seek(end)
    raise UserError(invalid_file(label, f"variable {name} not found"))


def _array(label: str, read: Reader, order: str, name: str, *, compressed: bool) -> MatArray | None:
    """Return the array whose element begins at the reader's position, or None if it has another name."""
    flags = _element(read, order, _UINT32)
    sizes = _element(read, order, _INT32)
    if _element(read, order, _INT8) != name.encode():
        return None
    flag = struct.unpack_from(f"{order}I", flags)[0]
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, num_bytes, inline = _tag(read, order)
    if flag & 0xFF < _FIRST_NUMERIC_CLASS or flag & _COMPLEX or kind not in _STORED:
        raise UserError(invalid_file(label, f"variable {name} is not an array of real numbers"))
    dtype = np.dtype(order + _STORED[kind])
    check_shape(shape)
    if num_bytes != math.prod(shape) * dtype.itemsize:
        raise struct.error(f"{num_bytes} bytes for {name} of shape {shape}")
    if inline is not None:
        return MatArray(shape, dtype, BytesIO(inline).read, compressed=False)
    return MatArray(shape, dtype, read, compressed=compressed)


def _element(read: Reader, order: str, expected: int) -> bytes:
    """Return the data of a short element."""
    kind, num_bytes, inline = _tag(read, order)
    if kind != expected or num_bytes > _LONGEST:
        raise struct.error(f"element of type {kind} and {num_bytes} bytes instead of type {expected}")
    return _read_exactly(read, -(-num_bytes // 8) * 8)[:num_bytes] if inline is None else inline


def _tag(read: Reader, order: str) -> tuple[int, int, bytes | None]:
    """Return type and length of an element, and its data if it is short enough to be in the tag."""
    tag = _read_exactly(read, 8)
    kind, num_bytes = struct.unpack(f"{order}II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, num_bytes, None


def _read_exactly(read: Reader, count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        raise EOFError("array ends early")
    return data
