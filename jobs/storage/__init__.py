"""From an address to its store."""

from pathlib import Path

from jobs.storage.base import Store
from jobs.storage.local import LocalStore


def open_store(url: str) -> Store:
    """The store at an address: a folder's path, or s3://bucket/prefix."""
    if url.startswith("s3://"):
        from jobs.storage.s3 import S3Store

        return S3Store(url)
    return LocalStore(Path(url))
