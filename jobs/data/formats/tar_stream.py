"""Read tars of other tools in order. All damage is an error; tarfile takes much of it for the end of an archive."""

import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import Self

from jobs.errors import UserError

_LARGEST = 2**28  # bytes of a member that is read, because a sparse or compressed member can claim any size
_LARGEST_HEADER = 2**20  # bytes of long names and PAX records, which tarfile reads at once
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and extension, as webdataset splits them
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset ignores


class _StrictInfo(tarfile.TarInfo):
    """A member whose header, if damaged, is an error: `TarFile.next` would call it the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _HEADERS and info.size > _LARGEST_HEADER):
            raise tarfile.ReadError(f"header with a size of {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def tar_members(path: Path, selected: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each file of a tar, plain or gzipped, and its content or None if it is not selected.

    Raises:
        UserError: The tar is damaged, ends early, or has no end mark; or a selected file is too large.
    """
    try:
        with _open(path) as file, tarfile.TarFile(fileobj=file, tarinfo=_StrictInfo) as tar:
            while (info := _next_member(tar)) is not None:
                if info.isreg():
                    yield info.name, _read_member(tar, info) if selected(info.name) else None
            _check_end(file)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{path}: invalid tar ({error}). Download or write it again.") from error


def tar_samples(path: Path, selected: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield samples as webdataset groups them: consecutive files whose names are equal up to the first dot.

    Args:
        path: The tar.
        selected: Extensions, in lower case, of the members whose content is read.

    Yields:
        The key, and the content by extension in lower case, empty if it is not selected.

    Raises:
        UserError: The tar is damaged, or a sample has two members of one extension.
    """
    members = (
        (*_split(name), content) for name, content in tar_members(path, lambda name: _split(name)[1] in selected)
    )
    for key, group in groupby((member for member in members if member[0]), lambda member: member[0]):
        sample: dict[str, bytes] = {}
        for _, extension, content in group:
            if extension in sample:
                raise UserError(f"{path}: duplicate member {key}.{extension}. Write the tar again without duplicates.")
            sample[extension] = content or b""
        yield key, sample


def _split(name: str) -> tuple[str, str]:
    """Return key and extension of a member, empty if webdataset ignores it."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match and not _META.match(name) else ("", "")


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    info = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]  # because TarFile remembers all of them
    if info is not None and info.size < 0:  # by a PAX record; the next member would be before this one
        raise tarfile.ReadError(f"{info.name} has {info.size} bytes")
    return info


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > _LARGEST:
        raise tarfile.ReadError(f"{info.name} has {info.size:,} bytes, over {_LARGEST:,}")
    file = tar.extractfile(info)
    content = file.read() if file is not None else b""
    if len(content) != info.size:
        raise tarfile.ReadError(f"{info.name} ends early")
    return content


def _check_end(file: gzip.GzipFile | BufferedReader) -> None:
    """Check that two blocks of zeros and nothing else end the archive, and by reading on, gzip's checksum."""
    zeros = 0
    while block := file.read(2**16):
        if block.count(0) != len(block):
            raise tarfile.ReadError("data follows its end")
        zeros += len(block)
    if zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the blocks that end an archive are missing")
