"""Files as a publisher provides them: located, opened, compared with the published size and hash."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from jobs.errors import UserError, first_line, os_error_reason

FIX_HINT = "Replace it with the published file."
_SAMPLE_BYTES = 64 * 2**10  # that a fingerprint reads at each of its positions
_POSITIONS = 16


@dataclass(frozen=True)
class PublishedFile:
    """One file of a dataset: its name, published size and MD5 (None: unknown), and address for a person."""

    name: str
    num_bytes: int | None
    md5: str | None
    url: str


def invalid_file(path: Path | str, reason: str | Exception) -> str:
    """Return the message for an invalid file, from a reason without a period or the exception of a failed read."""
    if isinstance(reason, Exception):
        reason = f"cannot read ({os_error_reason(reason) if isinstance(reason, OSError) else first_line(reason)})"
    return f"{path}: {reason}. {FIX_HINT}"


def require(folder: Path, dataset: str, files: Sequence[PublishedFile]) -> list[Path]:
    """Return the paths of the files in a folder; one UserError lists all missing files with their addresses."""
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        sizes = [f"{file.num_bytes:,} bytes, " if file.num_bytes is not None else "" for file in missing]
        names = ", ".join(f"{file.name} ({size}{file.url})" for file, size in zip(missing, sizes, strict=True))
        raise UserError(
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


def content_fingerprint(paths: Sequence[Path]) -> str:
    """Return a hash (hex) of names, sizes and sampled content, equal on every machine, at the cost of a few reads."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for position in range(_POSITIONS):
                    file.seek(max(0, size - _SAMPLE_BYTES) * position // (_POSITIONS - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise UserError(
                f"{path}: cannot read ({os_error_reason(error)}). Check the file and its permissions."
            ) from error
    return digest.hexdigest()


def find_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in a folder, plain or as .gz, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@contextmanager
def open_plain_or_gzip(path: Path) -> Iterator[BufferedIOBase]:
    """Yield the content, uncompressed for .gz; a failed read, also within the `with` block, raises a UserError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(invalid_file(path, error)) from error
