"""A node-local cache of files, shared by processes, that removes the least recently used files.

Files are named by the sha256 of their content, so that no stale file can be read. A reader holds a shared lock on its
file, a writer an exclusive lock; the kernel releases both when a process ends. A file gets its name when complete.
Only regular files with such names are counted and removed.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from jobs.errors import UserError, os_error_reason
from jobs.files import PARTIAL, create_partial, file_lock, open_nofollow, remove_unused

SUBFOLDER = "vlae-cache"
MARKER = "CACHEDIR.TAG"  # by which backup programs leave a cache out: https://bford.info/cachedir
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# Copies of shards. The folder may be removed.\n"
_NAME = re.compile(rf"[0-9a-f]{{64}}\.[a-z]+({PARTIAL})?")


class CacheFullError(UserError):
    """The cache is full of files in use, of which some may be closed soon."""


Make = Callable[[BinaryIO], None]


class Cache:
    """At most `limit` bytes of files in a subfolder of a folder on a disk of this node, where flock must work.

    Attributes:
        folder: The subfolder, which holds a CACHEDIR.TAG.
    """

    def __init__(self, parent: Path, limit: int) -> None:
        self.folder, self._limit = parent / SUBFOLDER, limit

    def open(self, name: str, num_bytes: int, make: Make) -> BinaryIO:
        """Return a cached file, made if missing, that no process removes before the caller closes it.

        Args:
            name: Name of the file, its sha256 and a suffix.
            num_bytes: Size of the file, for which space is reserved before it is written.
            make: Writes the file from its start and truncates the rest.

        Raises:
            CacheFullError: The files in use leave too little space below the limit.
            UserError: The disk fails, or `make` raised it.
        """
        path = self.folder / name
        try:
            self._create_folder()
            while True:
                file = _open_shared(path)
                if file is not None:
                    return file
                with file_lock(self.folder / f"{name[:2]}.lock"):  # because another process may be making the file
                    file = _open_shared(path)
                    if file is not None:
                        return file
                    self._make(path, num_bytes, make)
        except OSError as error:
            message = f"{error.filename or path}: {os_error_reason(error)}. Free space there, or set data.cache_dir."
            raise UserError(message, retry=True) from error

    def discard(self, name: str) -> None:
        """Remove a damaged file; processes that have opened it keep their content."""
        (self.folder / name).unlink(missing_ok=True)

    def _create_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise UserError(
                f"{self.folder}: a symbolic link instead of a folder. Remove it, or set another data.cache_dir."
            )
        with suppress(FileExistsError), (self.folder / MARKER).open("x") as marker:
            marker.write(_SIGNATURE)

    def _make(self, path: Path, num_bytes: int, make: Make) -> None:
        with self._reserve(path, num_bytes) as file:
            try:
                make(file)
                file.flush()
                with file_lock(self._lock):  # so that `_evict` sees the file under one of its two names
                    Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _reserve(self, path: Path, num_bytes: int) -> BinaryIO:
        """Return a locked partial file of zeros that occupies its space on the disk and below the limit."""
        with file_lock(self._lock):
            self._evict(num_bytes)
            file = create_partial(path)
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                file.close()
                Path(file.name).unlink()
                raise OSError(error.errno, error.strerror, file.name) from error
        return file

    @property
    def _lock(self) -> Path:
        return self.folder / "cache.lock"

    def _evict(self, num_bytes: int) -> None:
        """Remove unused files, the least recently used first, until `num_bytes` more fit."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        files.append((entry.stat(follow_symlinks=False), Path(entry.path)))
        files.sort(key=lambda file: file[0].st_mtime_ns)
        used = sum(status.st_size for status, _ in files)
        for status, path in files:
            leftover = path.suffix == ".partial"  # of a killed process, if no process holds its lock
            if (leftover or used + num_bytes > self._limit) and remove_unused(path):
                used -= status.st_size
        if used + num_bytes > self._limit:
            raise CacheFullError(
                f"data.cache_bytes={self._limit}: too small, because {used:,} bytes in {self.folder} are in use and "
                f"{num_bytes:,} more are needed. Raise it, or set train.shuffle_block_shards to fewer shards."
            )


def _open_shared(path: Path) -> BinaryIO | None:
    """Open and lock a file; None if the file is missing or a symbolic link, which `Cache._make` replaces."""
    try:
        file = open_nofollow(path, "rb")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # removed between the two calls
        file.close()
        return None
    os.utime(file.fileno())
    return file
