"""A storage in a folder, local or on a shared file system."""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jobs.errors import UserError, os_error_reason
from jobs.files import UUID_HEX, file_lock, open_nofollow, remove_folder, stream_sha256
from jobs.storage.base import corrupted_object, missing_object

_SCRATCH = ".partial-"
_SCRATCH_NAME = re.compile(re.escape(_SCRATCH) + UUID_HEX)
_LOCK = "lock"


class LocalStorage:
    """A folder, created at the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def url(self) -> str:
        return str(self._folder)

    def check(self) -> list[str]:
        return []

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _storage_error(error, self._folder / name) from error

    def write(self, name: str, content: bytes) -> None:
        with self.scratch() as scratch:
            _write_file(scratch / "content", content)
            self.publish(scratch / "content", name)

    def create(self, name: str, content: bytes) -> bytes:
        with self.scratch() as scratch:
            _write_file(scratch / "content", content)
            try:
                os.link(scratch / "content", self._folder / name)
            except FileExistsError:
                return (self._folder / name).read_bytes()
        return content

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = self._folder / f"{_SCRATCH}{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True)
            with file_lock(folder / _LOCK):  # so that `sweep` leaves the folder in place
                yield folder
        except OSError as error:
            raise _storage_error(error, folder) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, path: Path, name: str) -> None:
        final = self._folder / name
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            final.parent.mkdir(exist_ok=True)
            path.replace(final)
        except OSError as error:
            raise _storage_error(error, final) from error

    def local_path(self, name: str) -> Path:
        return self._folder / name

    def fetch(self, name: str, file: BinaryIO, sha256: str, num_bytes: int) -> None:  # noqa: ARG002
        path = self._folder / name
        try:
            with path.open("rb") as source:
                file.seek(0)
                shutil.copyfileobj(source, file, 2**20)
                file.truncate()
        except FileNotFoundError:
            raise missing_object(str(path)) from None
        except OSError as error:
            raise _storage_error(error, path) from error
        digest = stream_sha256(file)
        if digest != sha256:
            raise corrupted_object(str(path), digest, sha256)

    def names(self, prefix: str = "") -> list[str]:
        return [name for name, entry in self._entries(prefix) if entry.is_file()]

    def folders(self, prefix: str = "") -> list[str]:
        return [name for name, entry in self._entries(prefix) if entry.is_dir()]

    def clear(self, first: str) -> None:  # noqa: ARG002  (the folder is removed atomically)
        remove_folder(self._folder)

    def remove(self, name: str) -> None:
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(error, path) from error
        if path.parent != self._folder:
            with suppress(OSError):  # the folder is not empty
                path.parent.rmdir()

    def sweep(self) -> None:
        for name, entry in self._entries(_SCRATCH):
            if not _SCRATCH_NAME.fullmatch(name) or not entry.is_dir(follow_symlinks=False):
                continue
            # A folder without its lock file is being created or removed.
            with suppress(OSError), open_nofollow(Path(entry.path) / _LOCK, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path)

    def _entries(self, prefix: str) -> list[tuple[str, os.DirEntry[str]]]:
        """Return the entries whose names begin with a prefix."""
        folder, slash, start = prefix.rpartition("/")
        try:
            with os.scandir(self._folder / folder) as entries:
                return [(folder + slash + entry.name, entry) for entry in entries if entry.name.startswith(start)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _storage_error(error, self._folder / folder) from error


def _write_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _storage_error(error: OSError, path: Path) -> UserError:
    return UserError(
        f"{error.filename or path}: {os_error_reason(error)}. Check the permissions and the free space of the disk.",
        retry=True,
    )
