"""What a store offers: a place for finished things. What is in it is whole."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.errors import CorruptedError


class Store(Protocol):
    """Objects by name below one address. A name may have one folder: `step-1/weights`.

    Every method raises UserError when the place does not answer as it should: an AwayError where a later try may do.
    """

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        ...

    def read(self, name: str) -> bytes | None:
        """Content of a small object, or None."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a small object there, whole or not at all."""
        ...

    def create(self, name: str, content: bytes) -> bytes:
        """Put a small object there unless there is one; returns what is there then. Of several, one wins."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A local folder, for the time of a `with` block, to write files in that `publish` will take."""
        ...

    def publish(self, path: Path, name: str) -> None:
        """Put a file of the scratch folder there, whole or not at all; the file is gone afterwards."""
        ...

    def local_path(self, name: str) -> Path | None:
        """The file of an object, or None where objects are no files."""
        ...

    def fetch(self, name: str, file: BinaryIO, sha256: str) -> None:
        """Copy an object into a file, from its start, and verify it.

        Raises:
            UserError: it is missing, or its sha256 is another, more than once.
        """
        ...

    def names(self, prefix: str = "") -> Iterable[str]:
        """Names that begin so, without those in folders below, in any order."""
        ...

    def folders(self, prefix: str = "") -> Iterable[str]:
        """Names of the folders below that begin so."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        ...

    def clear(self, first: str) -> None:
        """Remove everything, the object `first` before all others."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left behind, which nobody sees but which takes room."""
        ...


def missing(address: str) -> CorruptedError:
    """The error for an object that a manifest names and that is not there."""
    return CorruptedError(f"{address} is missing: write it again with force=shard")


def damaged(address: str, found: str, expected: str) -> CorruptedError:
    """The error for an object whose bytes are not those that were written."""
    return CorruptedError(f"{address} is damaged (sha256 {found[:12]}, manifest {expected[:12]}): use force=shard")
