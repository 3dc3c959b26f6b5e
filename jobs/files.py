"""Local files: written atomically, removed atomically, hashed."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, BinaryIO


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON so that a reader sees the old file or the new one, never a fragment."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return stream_sha256(file)


def stream_sha256(file: BinaryIO) -> str:
    """Return the sha256 (hex) of a seekable file from its start, and leave the file at its start."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it exists: first atomically under its name, then its content."""
    for leftover in folder.parent.glob(f".removed-{folder.name}-*"):  # of killed calls
        shutil.rmtree(leftover, ignore_errors=True)
    renamed = folder.with_name(f".removed-{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.rename(renamed)
    except FileNotFoundError:
        return
    shutil.rmtree(renamed, ignore_errors=True)
