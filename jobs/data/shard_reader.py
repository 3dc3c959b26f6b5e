"""One shard, verified and mapped into memory: the tar itself, or a copy of its decoded images on this node."""

import io
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jobs.data.cache import Cache
from jobs.data.manifest import Manifest, Shard, index_file, tar_file
from jobs.errors import UserError
from jobs.files import open_sha256
from jobs.storage import open_store
from jobs.storage.base import Store, damaged, missing

_INDEX_HEADER = 128  # bytes of a .npy file before its values


@dataclass(frozen=True)
class DataAccess:
    """A dataset's place, and where this node may keep copies of what cannot be read in place."""

    url: str
    cache_dir: Path
    cache_bytes: int


@dataclass(frozen=True)
class OpenShard:
    """A shard in memory; the kernel reads and drops its pages as it likes."""

    pixels: memoryview
    offsets: NDArray[np.int64]  # (n,), of each image's first byte
    factors: NDArray[np.int64]  # (n, K)


class ShardFiles:
    """Opens the shards of one dataset.

    Every byte is checked against the manifest each time a process opens a shard. A damaged copy is made anew; a
    damaged original is an error.
    """

    def __init__(self, access: DataAccess, manifest: Manifest) -> None:
        self.access, self._manifest = access, manifest
        self._store: Store = open_store(access.url)
        self._cache = Cache(access.cache_dir, access.cache_bytes)
        self._image_bytes = math.prod(manifest.image_shape)

    @property
    def in_place(self) -> bool:
        """Whether the tars are read where they are, without copies."""
        return self._manifest.encoding == "npy" and self._store.local_path("") is not None

    def copied_bytes(self, shard: Shard) -> int:
        """What the copy of a shard takes in the cache."""
        return shard.num_bytes if shard.pixels_sha256 is None else shard.num_samples * self._image_bytes

    def open(self, shard: Shard) -> OpenShard:
        """Open a shard.

        Raises:
            UserError: it is missing or damaged (it is named), or there is no room for a copy.
        """
        index = self._index(shard)
        if shard.pixels_sha256 is None:
            tar, make = tar_file(shard.name), partial(self._store.fetch, tar_file(shard.name), sha256=shard.sha256)
            file = self._verified(tar, shard.sha256, shard.num_bytes, make, ".tar")
            offsets = np.ascontiguousarray(index[:, 0])
        else:
            decode, size = partial(self._decode, shard, index), self.copied_bytes(shard)
            file = self._verified(None, shard.pixels_sha256, size, decode, ".pixels")
            offsets = np.arange(len(index), dtype=np.int64) * self._image_bytes
        with file:  # the map keeps the file, and the lock of a copy
            pixels = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return OpenShard(pixels, offsets, index[:, 2:])

    def _index(self, shard: Shard) -> NDArray[np.int64]:
        name = index_file(shard.name)
        size = _INDEX_HEADER + 8 * shard.num_samples * (2 + len(self._manifest.factors))
        make = partial(self._store.fetch, name, sha256=shard.index_sha256)
        with self._verified(name, shard.index_sha256, size, make, ".index") as file:
            content = file.read()
        shape = (shard.num_samples, 2 + len(self._manifest.factors))
        # np.load would parse the header with ast, whose recursion count in Python 3.11 is shared by all threads:
        # two shards that are opened at once make it raise a SystemError.
        header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        if header not in content[:_INDEX_HEADER] or len(content) != size:
            raise UserError(f"{self._store.url}/{name} does not fit the manifest: use force=shard")
        return np.frombuffer(content, "<i8", offset=_INDEX_HEADER).reshape(shape)

    def _verified(
        self, name: str | None, sha256: str, num_bytes: int, make: Callable[[BinaryIO], None], suffix: str
    ) -> BinaryIO:
        """A file with this sha256, at its start: the object itself where it is a file, else a copy."""
        path = self._store.local_path(name) if name else None
        if path is not None:
            try:
                file: BinaryIO = path.open("rb")
            except FileNotFoundError:
                raise missing(str(path)) from None
            found = open_sha256(file)
            if found != sha256:
                file.close()
                raise damaged(str(path), found, sha256)
            return file
        copy = f"{sha256}{suffix}"
        for _ in range(2):
            file = self._cache.open(copy, num_bytes, make)
            found = open_sha256(file)
            if found == sha256:
                return file
            file.close()
            self._cache.discard(copy)  # the disk has changed it since it was made
        raise damaged(str(self.access.cache_dir / copy), found, sha256)

    def _decode(self, shard: Shard, index: NDArray[np.int64], file: BinaryIO) -> None:
        """Write the images of a PNG shard one after the other: once per node, instead of once per epoch."""
        address = f"{self._store.url}/{tar_file(shard.name)}"
        height, width, channels = self._manifest.image_shape
        file.seek(0)
        with tempfile.TemporaryFile(dir=self.access.cache_dir) as tar:
            self._store.fetch(tar_file(shard.name), tar, shard.sha256)
            for offset, length in index[:, :2].tolist():
                content = os.pread(tar.fileno(), length, offset)
                try:
                    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                        if (image.size, image.mode) != ((width, height), "RGB" if channels == 3 else "L"):
                            raise ValueError(f"an image of {image.size} {image.mode}")
                        file.write(image.tobytes())
                except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
                    raise UserError(f"{address} holds no PNG at byte {offset} ({error}): use force=shard") from error
        file.truncate()
