"""From an address to its store."""

from pathlib import Path

from jobs.store.base import Store
from jobs.store.local import LocalStore


def open_store(url: str) -> Store:
    """The store at an address: a folder's path, or s3://bucket/prefix."""
    if url.startswith("s3://"):
        from jobs.store.s3 import S3Store  # noqa: PLC0415  (boto3 takes a while to import)

        return S3Store(url)
    return LocalStore(Path(url))
