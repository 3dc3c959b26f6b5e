"""A node-local cache of files, shared by processes, that removes the least recently used files.

Files are named by the sha256 of their content, so that no stale file can be read. A reader holds a shared lock on its
file, a writer an exclusive lock; the kernel releases both when a process ends. A file gets its name when complete.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jobs.errors import UserError, os_error_reason


class CacheFullError(UserError):
    """The cache is full of files in use, of which some may be closed soon."""


Make = Callable[[BinaryIO], None]


class Cache:
    """At most `limit` bytes of files in a folder on a disk of this node; a network file system must support flock."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def open(self, name: str, num_bytes: int, make: Make) -> BinaryIO:
        """Return a file that no process removes until it is closed; it is made if it does not exist.

        Args:
            name: Name of the file, its sha256 first.
            num_bytes: Size of the file, for which space is reserved before it is written.
            make: Writes the file from its start and truncates the rest.

        Raises:
            CacheFullError: The files in use leave too little space below the limit.
            UserError: The disk fails, or `make` raised it.
        """
        path = self._folder / name
        try:
            while True:
                file = _open_shared(path)
                if file is not None:
                    return file
                with self._lock(f"{name[:2]}.lock"):  # because another process may be making the file
                    if not path.exists():
                        self._make(path, num_bytes, make)
        except OSError as error:
            message = f"{error.filename or path}: {os_error_reason(error)}. Free space there, or set data.cache_dir."
            raise UserError(message, retry=True) from error

    def discard(self, name: str) -> None:
        """Remove a damaged file; processes that have opened it keep their content."""
        (self._folder / name).unlink(missing_ok=True)

    def _make(self, path: Path, num_bytes: int, make: Make) -> None:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with self._reserve(partial, num_bytes) as file:
                make(file)
                file.flush()
                with self._lock("cache.lock"):  # so that `_evict` sees the file under one of its two names
                    partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _reserve(self, partial: Path, num_bytes: int) -> BinaryIO:
        """Return a locked file of zeros that occupies its space on the disk and below the limit."""
        with self._lock("cache.lock"):
            self._evict(num_bytes)
            file = partial.open("w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                file.close()
                raise OSError(error.errno, error.strerror, str(partial)) from error
        return file

    def _evict(self, num_bytes: int) -> None:
        """Remove unused files, the least recently used first, until `num_bytes` more fit."""
        entries = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                entries.append((path.stat(), path))
        entries.sort(key=lambda entry: entry[0].st_mtime_ns)
        used = sum(status.st_size for status, _ in entries)
        for status, path in entries:
            leftover = path.suffix == ".partial"  # of a killed process, if no process holds its lock
            if (leftover or used + num_bytes > self._limit) and path.suffix != ".lock" and _remove_unused(path):
                used -= status.st_size
        if used + num_bytes > self._limit:
            raise CacheFullError(
                f"data.cache_bytes={self._limit}: too small, because {used:,} bytes in {self._folder} are in use and "
                f"{num_bytes:,} more are needed. Raise it, or set train.shuffle_block_shards to fewer shards."
            )

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _open_shared(path: Path) -> BinaryIO | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # removed between the two calls
        file.close()
        return None
    os.utime(file.fileno())
    return file


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds its lock, and return whether it is gone."""
    try:
        with path.open("r+b") as file:  # for writing, because network file systems require it for an exclusive lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
