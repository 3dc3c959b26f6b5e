"""Test that headers of empty arrays, negative sizes and huge chunks are refused before anything is read."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jobs.data.formats.hdf5 import find_hdf5_array
from jobs.data.formats.idx import ByteArray, read_idx_header
from jobs.data.formats.mat5 import open_mat_array
from jobs.data.formats.npz import find_npz_array
from jobs.errors import UserError


def npz(path: Path, rows: int) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 3), }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(max(0, rows) * 3))


def hdf5(path: Path, rows: int) -> None:
    with h5py.File(path, "w") as file:
        array = file.create_dataset("x", (rows, 3), np.uint8, maxshape=(None, 3), chunks=(1, 3))
        array[:10] = 1


def mat(path: Path, rows: int) -> None:
    content = bytes(max(0, rows) * 3)
    parts = [
        struct.pack("<IIII", 6, 8, 9, 0),
        struct.pack("<IIii", 5, 8, rows, 3),
        struct.pack("<IIB7x", 1, 1, ord("x")),
    ]
    data = b"".join(parts) + struct.pack("<II", 2, len(content)) + content
    path.write_bytes(b"\0" * 124 + b"\0\1IM" + struct.pack("<II", 14, len(data)) + data)


def idx(path: Path, rows: int) -> None:
    path.write_bytes(b"\0\0\x08\2" + struct.pack(">II", rows % 2**32, 3) + bytes(max(0, rows) * 3))


def find_mat(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file, open_mat_array(str(path), file, "x") as array:
        return array.shape


READERS: dict[Callable[[Path, int], None], Callable[[Path], tuple[int, ...]]] = {
    npz: lambda path: find_npz_array(path, "x", "uint8", (3,)).shape,
    hdf5: lambda path: find_hdf5_array(path, "x", "uint8", (3,)).shape,
    mat: find_mat,
    idx: lambda path: ByteArray(path, read_idx_header).shape,
}


@pytest.mark.parametrize("write", READERS, ids=lambda write: write.__name__)
def test_array_without_rows_or_with_too_many_raises(tmp_path: Path, write: Callable[[Path, int], None]) -> None:
    path = tmp_path / "file"
    write(path, 5)
    assert READERS[write](path) == (5, 3)
    for rows in (0, -1, 2**22 + 1):
        if rows >= 0 or write is not hdf5:
            write(path, rows)
            with pytest.raises(UserError, match=rf"^{path}: .*shape"):
                READERS[write](path)


def test_hdf5_array_of_one_huge_chunk_raises(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (100_000, 64, 64, 3), np.uint8, chunks=(100_000, 64, 64, 3), compression="gzip")
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=rf"^{path}: .*chunks"):
        find_hdf5_array(path, "x", "uint8", (64, 64, 3))


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_hdf5_array_that_was_not_written_raises(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset("x", (9, 3), np.uint8, chunks=chunks)
        if chunks:
            array[:7] = 1
    with pytest.raises(UserError, match=rf"^{path}: .*written"):
        find_hdf5_array(path, "x", "uint8", (3,))
