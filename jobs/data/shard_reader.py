"""Open one shard, verified and mapped into memory: the tar itself, or a node-local copy of its decoded images."""

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
from PIL import Image

from jobs.data.cache import Cache
from jobs.data.formats.decoding import decoding
from jobs.data.manifest import Manifest, Shard, index_file, tar_file
from jobs.errors import CorruptedError
from jobs.files import stream_sha256
from jobs.storage import open_storage
from jobs.storage.base import corrupted_object, missing_object

_INDEX_HEADER = 128  # bytes of a .npy file before its values


@dataclass(frozen=True)
class DataAccess:
    """How a process reads a dataset.

    Attributes:
        url: Address of the dataset.
        cache_dir: Folder for copies of shards that are not read in place.
        cache_bytes: Maximum size of these copies.
        factors: Names of the factors that metrics use (setting `data.factors`).
    """

    url: str
    cache_dir: Path
    cache_bytes: int
    factors: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenShard:
    """A shard mapped into memory, whose pages the kernel reads and drops as needed.

    `offsets` are (n,) int64 first bytes of the images in `pixels`; `factors` are (n, K) int64 indices of the values.
    """

    pixels: memoryview
    offsets: NDArray[np.int64]
    factors: NDArray[np.int64]


class ShardReader:
    """Opens the shards of one dataset, and verifies every byte against the manifest each time.

    A damaged copy is made anew; a damaged original is an error.
    """

    def __init__(self, access: DataAccess, manifest: Manifest) -> None:
        self.access, self._manifest = access, manifest
        self._storage = open_storage(access.url)
        self._cache = Cache(access.cache_dir, access.cache_bytes)
        self._image_bytes = math.prod(manifest.image_shape)

    @property
    def in_place(self) -> bool:
        """Whether the tars are read in place, without copies."""
        return self._manifest.encoding == "npy" and self._storage.local_path("") is not None

    def copied_bytes(self, shard: Shard) -> int:
        """Return the size of the copy of a shard in the cache."""
        return shard.num_bytes if shard.pixels_sha256 is None else shard.num_samples * self._image_bytes

    def open(self, shard: Shard) -> OpenShard:
        """Return a shard, verified and mapped into memory.

        Raises:
            CorruptedError: The shard is missing or damaged.
            CacheFullError: The cache has no space for a copy.
        """
        index = self._index(shard)
        if shard.pixels_sha256 is None:
            tar, make = tar_file(shard.name), partial(self._fetch_tar, shard)
            file = self._open_verified(tar, shard.sha256, shard.num_bytes, make, ".tar")
            offsets = np.ascontiguousarray(index[:, 0])
        else:
            decode, size = partial(self._decode, shard, index), self.copied_bytes(shard)
            file = self._open_verified(None, shard.pixels_sha256, size, decode, ".pixels")
            offsets = np.arange(len(index), dtype=np.int64) * self._image_bytes
        with file:  # the map keeps the file, and the lock of a copy
            pixels = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return OpenShard(pixels, offsets, index[:, 2:])

    def _index(self, shard: Shard) -> NDArray[np.int64]:
        name, shape = index_file(shard.name), (shard.num_samples, 2 + len(self._manifest.factors))
        size = _INDEX_HEADER + 8 * math.prod(shape)
        make = partial(self._storage.fetch, name, sha256=shard.index_sha256, num_bytes=size)
        with self._open_verified(name, shard.index_sha256, size, make, ".index") as file:
            content = file.read()
        # Not np.load, because it parses the header with ast, whose recursion count all threads share in Python 3.11:
        # two shards that are opened at once can raise a SystemError.
        header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        if header not in content[:_INDEX_HEADER] or len(content) != size:
            address = f"{self._storage.url}/{name}"
            raise CorruptedError(f"{address}: does not fit the manifest. Write the shards again with force=shard.")
        return np.frombuffer(content, "<i8", offset=_INDEX_HEADER).reshape(shape)

    def _open_verified(
        self, name: str | None, sha256: str, num_bytes: int, make: Callable[[BinaryIO], None], suffix: str
    ) -> BinaryIO:
        """Open a file with this sha256 at its start: the object itself if it is a local file, else a copy."""
        path = self._storage.local_path(name) if name else None
        if path is not None:
            try:
                file: BinaryIO = path.open("rb")
            except FileNotFoundError:
                raise missing_object(str(path)) from None
            digest = stream_sha256(file)
            if digest != sha256:
                file.close()
                raise corrupted_object(str(path), digest, sha256)
            return file
        copy = f"{sha256}{suffix}"
        for _ in range(2):
            file = self._cache.open(copy, num_bytes, make)
            digest = stream_sha256(file)
            if digest == sha256:
                return file
            file.close()
            self._cache.discard(copy)  # because the disk has changed it since it was made
        raise corrupted_object(str(self._cache.folder / copy), digest, sha256)

    def _fetch_tar(self, shard: Shard, file: BinaryIO) -> None:
        self._storage.fetch(tar_file(shard.name), file, shard.sha256, shard.num_bytes)

    def _decode(self, shard: Shard, index: NDArray[np.int64], file: BinaryIO) -> None:
        """Write the images of a PNG shard one after the other: once per node instead of once per epoch."""
        address = f"{self._storage.url}/{tar_file(shard.name)}"
        height, width, channels = self._manifest.image_shape
        file.seek(0)
        with tempfile.TemporaryFile(dir=self._cache.folder) as tar:
            self._fetch_tar(shard, tar)
            for offset, length in index[:, :2].tolist():
                content = os.pread(tar.fileno(), length, offset)
                label = f"{address}: PNG at byte {offset}"
                with (
                    decoding(label, "Write the shards again with force=shard.", CorruptedError),
                    Image.open(io.BytesIO(content), formats=("PNG",)) as image,
                ):
                    if (image.size, image.mode) != ((width, height), "RGB" if channels == 3 else "L"):
                        raise ValueError(f"an image of {image.size} {image.mode}")
                    pixels = image.tobytes()
                file.write(pixels)
        file.truncate()
