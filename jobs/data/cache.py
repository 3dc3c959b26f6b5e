"""Copies of files on this node, shared by its processes, the least used removed to make room.

Files are named by the sha256 of their content, so equal ones are kept once and a stale one cannot be met.
Who reads a file holds a shared lock on it, who writes one an exclusive lock; the kernel lets go of both when
a process dies. A file appears under its name when it is whole.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jobs.errors import UserError


class CacheFullError(UserError):
    """The cache is full of files in use; some may be let go of soon."""


Make = Callable[[BinaryIO], None]


class Cache:
    """A folder of copies with a limit.

    Args:
        folder: on a disk of this node; several processes may use it, over a network file system only if that
            has locks (flock).
        limit: most bytes in it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def open(self, name: str, num_bytes: int, make: Make) -> BinaryIO:
        """Open a file, made first if it is not there; until it is closed, nobody removes it.

        Args:
            name: of the file, its sha256 first.
            num_bytes: its size, for which room is made before it is written.
            make: writes it from the start of a file and cuts off what is beyond; raises if it cannot be had.

        Raises:
            NoRoomError: there is no room below the limit.
            UserError: the disk fails, or what `make` raised.
        """
        path = self._folder / name
        try:
            while True:
                file = _open_shared(path)
                if file is not None:
                    return file
                with self._locked(f"{name[:2]}.lock"):  # another process may be making it
                    if not path.exists():
                        self._make(path, num_bytes, make)
        except OSError as error:
            message = f"{error.filename or path}: {error.strerror or error}; mend that, or set data.cache_dir"
            raise UserError(message) from error

    def discard(self, name: str) -> None:
        """Remove a file that was found damaged; who reads it keeps what he has."""
        (self._folder / name).unlink(missing_ok=True)

    def _make(self, path: Path, num_bytes: int, make: Make) -> None:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with self._reserve(partial, num_bytes) as file:
                make(file)
                file.flush()
                with self._locked("cache.lock"):  # who makes room then sees it under one of its two names
                    partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _reserve(self, partial: Path, num_bytes: int) -> BinaryIO:
        """A file of zeros, locked, whose room on the disk and below the limit is taken."""
        with self._locked("cache.lock"):
            self._make_room(num_bytes)
            file = partial.open("w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                file.close()
                raise OSError(error.errno, error.strerror, str(partial)) from error
        return file

    def _make_room(self, num_bytes: int) -> None:
        entries = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                entries.append((path.stat(), path))
        entries.sort(key=lambda entry: entry[0].st_mtime_ns)
        used = sum(status.st_size for status, _ in entries)
        for status, path in entries:
            left_over = path.suffix == ".partial"  # of a killed process, if nobody holds it
            if (left_over or used + num_bytes > self._limit) and path.suffix != ".lock" and _remove_unused(path):
                used -= status.st_size
        if used + num_bytes > self._limit:
            raise CacheFullError(
                f"data.cache_bytes={self._limit} is too small: {used:,} bytes in {self._folder} are in use and "
                f"{num_bytes:,} more are needed; raise it, or set train.shuffle_block_shards to fewer shards"
            )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
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
    """Remove a file unless somebody holds it."""
    try:
        with path.open("r+b") as file:  # network file systems want that for an exclusive lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
