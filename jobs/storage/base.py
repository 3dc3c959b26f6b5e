"""The interface of a storage. Every object in it is complete."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.errors import CorruptedError


class Storage(Protocol):
    """Objects by name (`a` or `step-1/a`). A failure is a UserError, an UnavailableError if a later try may succeed."""

    @property
    def url(self) -> str:
        """The address without a trailing slash."""
        ...

    def check(self) -> list[str]:
        """Check that objects can be written before any work is done; return notes on guarantees that are missing."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, or None if it does not exist."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small object atomically."""
        ...

    def create(self, name: str, content: bytes) -> bytes:
        """Write a small object atomically unless it exists; return its content, by the first of concurrent calls."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """Return a local folder, removed at the end of a `with` block, for files that `publish` takes."""
        ...

    def publish(self, path: Path, name: str) -> None:
        """Move a file of the scratch folder into the storage atomically."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Return the file of an object, or None if objects are not files."""
        ...

    def fetch(self, name: str, file: BinaryIO, sha256: str, num_bytes: int) -> None:
        """Copy an object of at most `num_bytes` into a file from its start.

        Raises:
            CorruptedError: The object is missing or larger, or its sha256 differs twice.
        """
        ...

    def names(self, prefix: str = "") -> Iterable[str]:
        """Return the names that begin with a prefix, without those in sub-folders, in any order."""
        ...

    def folders(self, prefix: str = "") -> Iterable[str]:
        """Return the names of the sub-folders that begin with a prefix, in any order."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        ...

    def clear(self, first: str) -> None:
        """Remove all objects, `first` before all others."""
        ...

    def sweep(self) -> None:
        """Remove the hidden leftovers of killed writers, which use disk space."""
        ...


def missing_object(address: str) -> CorruptedError:
    """Return the error for an object that a manifest lists but that does not exist."""
    return CorruptedError(f"{address}: not found. Write the shards again with force=shard.")


def corrupted_object(address: str, actual: str, expected: str) -> CorruptedError:
    """Return the error for an object whose sha256 differs from the one that was written."""
    return CorruptedError(
        f"{address}: corrupted (sha256 {actual[:12]} instead of {expected[:12]}). "
        "Write the shards again with force=shard."
    )
