"""Files on a local file system: written and removed so that nobody ever sees a half, and hashed."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, BinaryIO


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file, the new one, or none, and never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object that was written whole, or None."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes (hex)."""
    with path.open("rb") as file:
        return open_sha256(file)


def open_sha256(file: BinaryIO) -> str:
    """sha256 of an open file's bytes (hex), from its start; it is at its start afterwards."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there: at once under its name, then its content."""
    for left in folder.parent.glob(f".removed-{folder.name}-*"):  # by a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    doomed = folder.with_name(f".removed-{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
