"""One split of a sharded dataset, whose samples are read by their ids."""

import math
import resource
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.cache import CacheFullError
from jobs.data.manifest import read_manifest
from jobs.data.shard_reader import DataAccess, OpenShard, ShardReader
from jobs.data.sources.base import Split
from jobs.errors import UserError
from jobs.storage import open_storage

_THREADS = 8  # that fetch and verify shards
_CACHE_WAIT_SECONDS = 60.0  # for other workers to close their shards
_MAX_MAPS = Path("/proc/sys/vm/max_map_count")


class ShardedDataset:
    """One split of a dataset as a numbered sequence of images and factors.

    A shard is fetched if it is not local, and verified against the manifest's sha256 when it is first needed.

    Args:
        access: How to read the dataset.
        split: "train", "validation" or "test".

    Raises:
        UserError: There is no dataset, or the split is empty. Reading raises it for a shard that is missing or damaged.
    """

    def __init__(self, access: DataAccess, split: Split) -> None:
        manifest = read_manifest(open_storage(access.url))
        if manifest is None:
            raise UserError(f"{access.url}: no dataset. Run stage=shard first.")
        self.access, self.manifest, self._shards = access, manifest, manifest.of_split(split)
        if not self._shards:
            raise UserError(
                f"{access.url}: the {split} split is empty. Use more samples or a larger data.{split}_fraction."
            )
        self._reader = ShardReader(access, manifest)
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self._shards])
        self._open: dict[int, OpenShard] = {}
        self._opening: dict[int, Future[OpenShard]] = {}
        self._pixels = [memoryview(b"")] * len(self._shards)  # of the open shards, for fast access
        self._strides = np.zeros((2, len(self._shards)), np.int64)  # first offset and distance in each open shard
        self._irregular: set[int] = set()
        self._pool = ThreadPoolExecutor(_THREADS, "shards")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        height, width, channels = self.manifest.image_shape
        return channels, height, width

    @property
    def num_bytes(self) -> int:
        """Size of all images, uncompressed."""
        return len(self) * math.prod(self.image_shape)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Number of samples in each shard."""
        return np.diff(self._starts)

    def images(self, sample_ids: NDArray[np.int64], *, pin_memory: bool = False) -> Tensor:
        """Return (n, C, H, W) uint8 images in channels-last memory order; their shards are opened and stay open.

        Args:
            sample_ids: (n,) ids of the samples.
            pin_memory: Whether the images go to page-locked memory, from where a GPU copies them faster.
        """
        channels, height, width = self.image_shape
        size = channels * height * width
        out = torch.empty(len(sample_ids) * size, dtype=torch.uint8, pin_memory=pin_memory)
        shards, rows = self._locate(sample_ids)
        first, distance = self._strides
        starts: NDArray[np.int64] = first[shards] + rows * distance[shards]
        for shard in self._irregular.intersection(shards.tolist()) if self._irregular else ():
            inside = shards == shard
            starts[inside] = self._open[shard].offsets[rows[inside]]
        # Slices of memoryviews copy at the speed of memory, and any other operation per row costs more than the copy.
        pixels, target, end = self._pixels, memoryview(out.numpy()), 0  # type: ignore[arg-type]
        for shard, start in zip(shards.tolist(), starts.tolist()):  # noqa: B905  (strict takes time in every row)
            target[end : end + size] = pixels[shard][start : start + size]
            end += size
        return out.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def factors(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n, K) value indices, columns as in the manifest; the shards are opened and stay open."""
        out = np.empty((len(sample_ids), len(self.manifest.factors)), np.int64)
        shards, rows = self._locate(sample_ids)
        for shard in set(shards.tolist()):
            inside = shards == shard
            out[inside] = self._open[shard].factors[rows[inside]]
        return out

    def _locate(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard of each sample, which is opened, and the row of the sample in it."""
        shards = np.searchsorted(self._starts, sample_ids, side="right") - 1
        closed = set(shards.tolist()) - self._open.keys()
        if closed:
            for _ in self.open(closed):
                pass
        return shards, sample_ids - self._starts[shards]

    def iter_shards(
        self, sample_ids: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, NDArray[np.int64]]]:
        """Yield rows of `sample_ids`, their images and their factors by shard, with a few shards open at a time."""
        shard_of_row = np.searchsorted(self._starts, sample_ids, side="right") - 1
        shards = np.unique(shard_of_row).tolist()
        largest = max(map(self._reader.copied_bytes, self._shards))
        ahead = _THREADS if self._reader.in_place else min(_THREADS, max(1, self._reader.access.cache_bytes // largest))
        for index, shard in enumerate(shards):
            self.prefetch(shards[index : index + ahead])
            rows = np.flatnonzero(shard_of_row == shard)
            yield rows, self.images(sample_ids[rows]), self.factors(sample_ids[rows])
            self.close_except(shards[index + 1 : index + ahead])

    def read(self, sample_ids: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Return (n, C, H, W) images and (n, K) factors of any number of samples, with a few shards open at a time."""
        channels, height, width = self.image_shape
        images = torch.empty(len(sample_ids), height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        factors = np.empty((len(sample_ids), len(self.manifest.factors)), np.int64)
        for rows, shard_images, shard_factors in self.iter_shards(sample_ids):
            images[torch.from_numpy(rows)] = shard_images
            factors[rows] = shard_factors
        return images, factors

    def open(self, shards: Collection[int]) -> Iterator[int]:
        """Yield the number of open shards after each, while several at a time are fetched and verified.

        Raises:
            UserError: A shard is missing or damaged, or the cache is too small.
        """
        prefetched = set(self._opening)
        self.prefetch(shards)
        try:
            for count, shard in enumerate(shards, 1):
                if shard not in self._open:
                    self._open[shard] = self._wait(shard, retry=shard in prefetched)
                    self._pixels[shard] = self._open[shard].pixels
                    self._note_stride(shard, self._open[shard].offsets)
                yield count
        except UserError:
            for future in self._opening.values():
                future.cancel()
            self._opening.clear()
            raise

    def _wait(self, shard: int, *, retry: bool) -> OpenShard:
        """Wait for a shard, and for cache space that other workers may free; `retry` once if a prefetch failed."""
        deadline = time.monotonic() + _CACHE_WAIT_SECONDS
        future = self._opening.pop(shard)
        while True:
            try:
                return future.result()
            except CacheFullError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            except UserError:
                if not retry:
                    raise
                retry = False
            future = self._pool.submit(self._reader.open, self._shards[shard])

    def _note_stride(self, shard: int, offsets: NDArray[np.int64]) -> None:
        """Note whether samples have equal distances, as in almost all shards; a longer JSON can move some."""
        steps = np.unique(np.diff(offsets))
        if len(steps) < 2:
            self._strides[:, shard] = offsets[0], steps[0] if len(steps) else 0
        else:
            self._irregular.add(shard)

    def prefetch(self, shards: Collection[int]) -> None:
        """Start to fetch and verify shards in the background."""
        for shard in shards:
            if shard not in self._open and shard not in self._opening:
                self._opening[shard] = self._pool.submit(self._reader.open, self._shards[shard])

    def close_except(self, shards: Collection[int]) -> None:
        """Close all other shards, so that their copies may be removed."""
        for held in (self._open, self._opening):
            for shard in held.keys() - set(shards):
                del held[shard]
                self._pixels[shard] = memoryview(b"")

    def check_capacity(self, block_shards: int, batch_size: int) -> None:
        """Check that the cache and the open files suffice for the shards that are read at a time.

        Args:
            block_shards: Shards that are shuffled together; 0: all.
            batch_size: Images per step over all workers.

        Raises:
            UserError: The cache is too small, or the system allows too few open files.
        """
        # Beside the blocks that it fills, a batch may touch the last block of an epoch, which may be short, and the
        # next.
        filled = -(-batch_size // (block_shards * int(np.median(self.shard_sizes)))) if block_shards else 0
        count = min(block_shards * (filled + 2) or len(self._shards), len(self._shards))
        _raise_open_file_limit(count)
        if self._reader.in_place:
            return
        sizes = sorted((self._reader.copied_bytes(shard) for shard in self._shards), reverse=True)
        needed, limit = sum(sizes[:count]), self._reader.access.cache_bytes
        if needed > limit:
            fitting = limit // (3 * sizes[0])
            hint = f"set train.shuffle_block_shards={fitting} or less" if fitting else "write smaller shards"
            raise UserError(
                f"data.cache_bytes={limit}: too small for the {needed:,} bytes that are read at a time. "
                f"Raise it, or {hint}."
            )


def _raise_open_file_limit(num_shards: int) -> None:
    """Raise the process's limit of open files, because every mapped shard holds a file and a map."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    max_maps = int(_MAX_MAPS.read_text()) if _MAX_MAPS.exists() else 2**31
    limit = min(max_maps, 2**31 if hard == resource.RLIM_INFINITY else hard)
    needed = 2 * num_shards + 512
    if needed > limit:
        raise UserError(
            f"train.shuffle_block_shards: {num_shards} shards are more than this process may open at once ({limit} "
            "files). Reduce it, write larger shards (data.samples_per_task), or raise `ulimit -n` and vm.max_map_count."
        )
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
