"""Read tars of other tools in order. All damage is an error; tarfile takes much of it for the end of an archive."""

import bz2
import gzip
import lzma
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self

from jobs.data.formats.decoding import MAX_DECODED, decoding
from jobs.errors import UserError, printable

_MAX_HEADER = 2**20  # bytes of long names and PAX records, which tarfile reads at once
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_LINKS = 8  # in a chain of links
_MAX_REASONS = 10  # that are counted separately
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset ignores


class _StrictInfo(tarfile.TarInfo):
    """A member whose header, if damaged, is an error: `TarFile.next` would call it the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _HEADERS and info.size > _MAX_HEADER):
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


def tar_members(
    path: Path, selected: Callable[[str], bool], left_out: Counter[str] | None = None
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each file of a tar, plain or compressed, and its content or None if it is not selected.

    A link to a file of the same tar is yielded as that file under the link's name.

    Args:
        path: The tar; its content tells the compression (gzip, bzip2, xz, zstd).
        selected: Whether the content of a name is read.
        left_out: Counts members that are neither files nor folders, by reason.

    Raises:
        UserError: The tar is damaged, ends early, or has no end mark; a selected file is too large; or a compressed tar
            has links.
    """
    with ExitStack() as stack:
        stack.enter_context(decoding(path, "Download or write it again."))
        raw = stack.enter_context(path.open("rb"))
        file = stack.enter_context(_decompressed(raw))
        # "r|" reads forward only, as zstd does.
        mode: Literal["r:", "r|"] = "r:" if file is raw else "r|"
        tar = stack.enter_context(tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictInfo))
        links = _Links(path)
        while (info := _next_member(tar)) is not None:
            if info.isreg():
                yield info.name, _read_member(tar, info) if selected(info.name) else None
            elif info.islnk() or info.issym():
                if file is not raw:
                    raise UserError(f"{path}: link {info.name} in a compressed tar. Decompress the tar.")
                if (target := links.find(info)) is not None:
                    yield info.name, links.read(target) if selected(info.name) else None
                elif left_out is not None:
                    left_out["links without a target in the tar"] += 1
            elif not info.isdir() and left_out is not None:
                left_out["special files"] += 1
        _check_end(tar)


class _Links:
    """Targets of the links of an uncompressed tar, from a second pass over its headers if there is a link."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _members(self) -> dict[str, tarfile.TarInfo | str]:
        """Files, and targets of links, by normalized name."""
        members: dict[str, tarfile.TarInfo | str] = {}
        with tarfile.open(self._path, "r:", tarinfo=_StrictInfo) as tar:
            while (info := _next_member(tar)) is not None:
                if info.isreg():
                    members[posixpath.normpath(info.name)] = info
                elif info.islnk() or info.issym():
                    members[posixpath.normpath(info.name)] = _target(info)
        return members

    def find(self, link: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """Return the file at the end of a chain of links, or None."""
        target: tarfile.TarInfo | str | None = _target(link)
        for _ in range(_MAX_LINKS):
            if not isinstance(target, str):
                return target
            target = self._members.get(target)
        return None

    def read(self, target: tarfile.TarInfo) -> bytes:
        """Return the content of a file."""
        with tarfile.open(self._path, "r:", tarinfo=_StrictInfo) as tar:
            return _read_member(tar, target)


def _target(link: tarfile.TarInfo) -> str:
    """Return the normalized name of the target; that of a symbolic link is relative to the link's folder."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


@dataclass(frozen=True)
class SampleNames:
    """Division of the names of members into the key of a sample and an extension in lower case.

    Attributes:
        extensions: Extensions of the members of a sample; others have one of them after a further dot (`seg.png`).
        last_dot: Whether the extension begins after the last dot of the name instead of the first, as in webdataset.
    """

    extensions: frozenset[str]
    last_dot: bool = False

    def split(self, name: str) -> tuple[str, str]:
        """Return key and extension, both empty for a member of no sample."""
        folder, slash, base = name.rpartition("/")
        stem, _, extension = (base.rpartition if self.last_dot else base.partition)(".")
        extension = extension.lower()
        is_member = extension in self.extensions or extension.rpartition(".")[2] in self.extensions
        return (f"{folder}{slash}{stem}", extension) if stem and is_member and not is_hidden(name) else ("", "")


def is_hidden(name: str) -> bool:
    """Return whether a member or a folder above is hidden, such as macOS's sidecar `._x`, or ignored by webdataset."""
    return bool(_META.match(name)) or any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def tar_samples(
    path: Path, selected: Collection[str], names: SampleNames, left_out: Counter[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield samples as webdataset groups them: consecutive files with equal keys, apart from files of no sample.

    Args:
        path: The tar.
        selected: Extensions of the members whose content is read.
        names: Division of the names.
        left_out: Counts members of no sample, by reason.

    Yields:
        The key, and the content by extension, empty if it is not selected.

    Raises:
        UserError: The tar is damaged, or a sample has two members of one extension.
    """
    counter = Counter[str]() if left_out is None else left_out

    def members() -> Iterator[tuple[str, str, bytes | None]]:
        for name, content in tar_members(path, lambda name: names.split(name)[1] in selected, counter):
            key, extension = names.split(name)
            if key:
                yield key, extension, content
            elif is_hidden(name):
                counter["hidden or system files"] += 1
            else:
                count_other_type(counter, name.rpartition("/")[2])

    for key, group in groupby(members(), lambda member: member[0]):
        sample: dict[str, bytes] = {}
        for _, extension, content in group:
            if extension in sample:
                raise UserError(f"{path}: duplicate member {key}.{extension}. Write the tar again without duplicates.")
            sample[extension] = content or b""
        yield key, sample


def count_other_type(left_out: Counter[str], name: str) -> None:
    """Count a member that is not read, by its extension, or together with others beyond ten reasons."""
    extension = printable(name.partition(".")[2].lower())[:30]
    reason = f"other file types .{extension}" if extension else "files without ending"
    left_out[reason if reason in left_out or len(left_out) < _MAX_REASONS else "other file types"] += 1


@contextmanager
def _decompressed(raw: BinaryIO) -> Iterator[IO[bytes]]:
    """Yield the decompressed content, or the file itself if it is not compressed."""
    start = raw.read(6)
    raw.seek(0)
    for magic, opener in _DECOMPRESSORS.items():
        if start.startswith(magic):
            with opener(raw) as file:
                yield file
            return
    yield raw


def _open_zstd(raw: BinaryIO) -> Any:
    import pyarrow  # noqa: PLC0415  (takes 0.15 s, and few tars need it)

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")


# By the first bytes of a file. MLflow requires pyarrow; Python's own module for zstd begins with Python 3.14.
_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    info = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]  # because TarFile remembers all of them
    if info is not None and info.size < 0:  # by a PAX record; the next member would be before this one
        raise tarfile.ReadError(f"{info.name} has {info.size} bytes")
    return info


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    # Because a sparse or compressed member can claim any size.
    if info.size > MAX_DECODED:
        raise tarfile.ReadError(f"{info.name} has {info.size:,} bytes, over {MAX_DECODED:,}")
    file = tar.extractfile(info)
    content = file.read() if file is not None else b""
    if len(content) != info.size:
        raise tarfile.ReadError(f"{info.name} ends early")
    return content


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that two blocks of zeros and nothing else end the archive, and by reading on, the checksum of gzip."""
    zeros = 0
    while block := tar.fileobj.read(2**16):
        if block.count(0) != len(block):
            raise tarfile.ReadError("data follows its end")
        zeros += len(block)
    if zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the blocks that end an archive are missing")
