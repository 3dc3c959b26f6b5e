"""Members and samples of other people's tars, in order, without extracting.

tarfile takes many a damage for the end of an archive; here all damage is an error.
"""

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

_LARGEST = 2**28  # bytes of a member that is read; a sparse or a compressed one costs its maker nothing
_LARGEST_HEADER = 2**20  # bytes of long names and PAX records, which tarfile reads whole
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and extension, as webdataset cuts them
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset leaves out


class _StrictInfo(tarfile.TarInfo):
    """A member whose header, if damaged, is an error: `TarFile.next` would call it the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _HEADERS and info.size > _LARGEST_HEADER):
            raise tarfile.ReadError(f"a header speaks of {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def tar_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Name of each file in the tar, plain or gzipped, and its content if it is wanted.

    Args:
        path: of the tar.
        wanted: whether the content of the file of this name is to be read.

    Raises:
        UserError: the tar is damaged, ends early, or has no end; or a wanted file is too large.
    """
    try:
        with _opened(path) as file, tarfile.TarFile(fileobj=file, tarinfo=_StrictInfo) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
                if info.size < 0:  # by a PAX record; the next member would lie before this one
                    raise tarfile.ReadError(f"{info.name} has {info.size} bytes")
                if not info.isreg():
                    continue
                yield info.name, _content(tar, info) if wanted(info.name) else None
            _check_end(file)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole tar ({error}): fetch it again") from error


def tar_samples(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample, as webdataset groups them: consecutive files of one name up to its first dot.

    Args:
        path: of the tar.
        wanted: extensions, in lower case, of the members whose content is to be read.

    Yields:
        The key, and the content by extension in lower case, empty where it is not wanted.

    Raises:
        UserError: the tar is damaged, or a sample has two members of one extension.
    """
    members = ((*_split(name), content) for name, content in tar_members(path, lambda name: _split(name)[1] in wanted))
    for key, group in groupby((member for member in members if member[0]), lambda member: member[0]):
        parts: dict[str, bytes] = {}
        for _, extension, content in group:
            if extension in parts:
                raise UserError(f"{path} holds {key}.{extension} twice: write the tar again without")
            parts[extension] = content or b""
        yield key, parts


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member, empty if webdataset leaves it out."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match and not _META.match(name) else ("", "")


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > _LARGEST:
        raise tarfile.ReadError(f"{info.name} has {info.size:,} bytes, over {_LARGEST:,}")
    file = tar.extractfile(info)
    content = file.read() if file is not None else b""
    if len(content) != info.size:
        raise tarfile.ReadError(f"{info.name} is short")
    return content


def _check_end(file: gzip.GzipFile | BufferedReader) -> None:
    """After the first block of zeros there is a second, and nothing but zeros; reading on checks gzip's sum, too."""
    zeros = 0
    while block := file.read(2**16):
        if block.count(0) != len(block):
            raise tarfile.ReadError("something follows its end")
        zeros += len(block)
    if zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it lacks the blocks that end an archive")
