"""Files as a publisher provides them: located, opened, compared with the published size and hash."""

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from jobs.data.formats.decoding import decoding
from jobs.errors import MissingSourceError

FIX_HINT = "Replace it with the published file."


@dataclass(frozen=True)
class PublishedFile:
    """One file of a dataset: its name, published size and MD5 (None: unknown), and address for a person."""

    name: str
    num_bytes: int | None
    md5: str | None
    url: str


def invalid_file(path: Path | str, reason: str) -> str:
    """Return the message for an invalid file, from a reason without a period."""
    return f"{path}: {reason}. {FIX_HINT}"


def require(folder: Path, dataset: str, files: Sequence[PublishedFile]) -> list[Path]:
    """Return the paths of the files in a folder; one MissingSourceError lists all missing files and addresses."""
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        sizes = [f"{file.num_bytes:,} bytes, " if file.num_bytes is not None else "" for file in missing]
        names = ", ".join(f"{file.name} ({size}{file.url})" for file, size in zip(missing, sizes, strict=True))
        raise MissingSourceError(
            f"data.root={folder}: not found: {names}. Download these files of data={dataset} to this folder."
        )
    return [folder / file.name for file in files]


def warnings(folder: Path, files: Sequence[PublishedFile]) -> list[str]:
    """Return a line per file whose size or MD5 is not the published one; it is used, as it may be a newer edition."""
    lines = []
    for file in files:
        path = folder / file.name
        size = path.stat().st_size
        if file.num_bytes is not None and size != file.num_bytes:
            lines.append(f"{path}: {size:,} bytes, the published file has {file.num_bytes:,}. It is used as it is.")
        elif file.md5 is not None and (digest := file_md5(path)) != file.md5:
            lines.append(f"{path}: md5 {digest}, the published file has {file.md5}. It is used as it is.")
    return lines


def file_md5(path: Path) -> str:
    """Return the MD5 of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def find_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in a folder, plain or as .gz, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@contextmanager
def open_plain_or_gzip(path: Path) -> Iterator[BufferedIOBase]:
    """Yield the content, uncompressed for .gz; a failed read, also within the `with` block, raises a UserError."""
    with decoding(path, FIX_HINT), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file
