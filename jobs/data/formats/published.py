"""Files as a publisher gives them: found, verified by size and hash, and asked for in one message."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UserError

_SAMPLED = 64 * 2**10  # bytes at each of the places that a fingerprint looks at
_PLACES = 16


@dataclass(frozen=True)
class PublishedFile:
    """One file of a dataset."""

    name: str
    num_bytes: int | None  # None: not known
    md5: str | None  # as the publisher or the common loaders state it; None: not known
    url: str  # where a person gets it


def require(folder: Path, dataset: str, files: Sequence[PublishedFile]) -> list[Path]:
    """The paths of all files.

    Raises:
        UserError: some are missing; one message says which files go where, and where they are to be had.
    """
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        wanted = ", ".join(f"{file.name} ({_size(file)}from {file.url})" for file in missing)
        raise UserError(f"data={dataset} needs {wanted}: put that into data.root={folder}")
    return [folder / file.name for file in files]


def remarks(folder: Path, files: Sequence[PublishedFile]) -> list[str]:
    """What of size and md5 is not as published, a line each; an unknown hash may be a newer edition."""
    lines = []
    for file in files:
        path = folder / file.name
        size = path.stat().st_size
        if file.num_bytes is not None and size != file.num_bytes:
            lines.append(f"{path} has {size:,} bytes, the published file {file.num_bytes:,}: it is used as it is")
        elif file.md5 is not None:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if digest != file.md5:
                lines.append(f"{path} has md5 {digest}, the published file {file.md5}: it is used as it is")
    return lines


def content_fingerprint(paths: Sequence[Path]) -> str:
    """Hash (hex) of names, sizes and sampled content: the same on every machine, at the cost of a few reads.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for place in range(_PLACES):
                    file.seek(max(0, size - _SAMPLED) * place // (_PLACES - 1))
                    digest.update(file.read(_SAMPLED))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): mend that and run again") from error
    return digest.hexdigest()


def _size(file: PublishedFile) -> str:
    return f"{file.num_bytes:,} bytes, " if file.num_bytes is not None else ""
