"""Durable storage of complete objects: a folder, or S3."""

from pathlib import Path

from jobs.storage.base import Storage
from jobs.storage.local import LocalStorage


def open_storage(url: str) -> Storage:
    """Return the storage at an address: the path of a folder, or s3://bucket/prefix."""
    if url.startswith("s3://"):
        from jobs.storage.s3 import S3Storage

        return S3Storage(url)
    return LocalStorage(Path(url))
