"""Local files: written, locked and removed safely where other processes and users write too.

A temporary file has a random name, so that no other user can place a symbolic link there beforehand. The file is locked
while it is written, which distinguishes a file in use from the leftover of a killed process.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

UUID_HEX = "[0-9a-f]{32}"  # regular expression of the random part of a temporary name
PARTIAL = rf"\.{UUID_HEX}\.partial"  # regular expression of the suffix that `create_partial` appends to a name


def open_nofollow(path: Path, mode: str) -> BinaryIO:
    """Open a file in a binary mode, but raise an OSError if the path itself is a symbolic link."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return cast(BinaryIO, open(path, mode, opener=opener))


@contextmanager
def file_lock(
    path: Path, *, shared: bool = False, wait: bool = True, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the kernel's lock on a file for the time of a `with` block. The kernel releases it if the process is killed.

    Args:
        path: File of the lock, which is created. A symbolic link is refused, because the file would be
            created where it leads.
        shared: Admit other shared locks, as readers take them.
        wait: Wait for other locks.
        on_wait: Called before a wait.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: Another lock exists, and `wait` is false.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with open_nofollow(path, "ab") as file:  # for writing, because NFS requires it for an exclusive lock
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            on_wait()
            fcntl.flock(file, operation)
        yield


def create_partial(path: Path) -> BinaryIO:
    """Create a file with a random name beside `path`, locked until it is closed."""
    while True:
        file = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial").open("x+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else removed by `remove_unused` between the two calls
            return file
        file.close()


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` atomically at the end of a `with` block, and is removed after an error."""
    leftover = re.compile(re.escape(path.name) + PARTIAL)
    for name in os.listdir(path.parent):  # noqa: PTH208  (a fraction of the time of iterdir)
        if leftover.fullmatch(name):
            remove_unused(path.with_name(name))
    with create_partial(path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def remove_unused(path: Path) -> bool:
    """Remove a regular file that no process has locked, and return whether the path is free."""
    try:
        with open_nofollow(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON so that a reader sees the old file or the new one, never a fragment."""
    with replace_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def parse_json_object(content: str | bytes) -> dict[str, Any]:
    """Return a JSON object, empty if the content is anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # the latter for deeply nested content
        return {}
    return value if isinstance(value, dict) else {}


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
    leftover = re.compile(rf"\.removed-{re.escape(folder.name)}-{UUID_HEX}")
    with suppress(FileNotFoundError):
        for name in os.listdir(folder.parent):  # noqa: PTH208
            if leftover.fullmatch(name):  # of a killed call
                shutil.rmtree(folder.with_name(name), ignore_errors=True)
    renamed = folder.with_name(f".removed-{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.rename(renamed)
    except FileNotFoundError:
        return
    shutil.rmtree(renamed, ignore_errors=True)
