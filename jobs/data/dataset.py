"""One split of a sharded dataset: its samples by number."""

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
from jobs.data.shard_reader import DataAccess, OpenShard, ShardFiles
from jobs.data.sources.base import Split
from jobs.errors import UserError
from jobs.storage import open_store

_THREADS = 8  # that fetch and verify shards
_ROOM_SECONDS = 60.0  # to wait for other workers to let go of their shards
_MAPS = Path("/proc/sys/vm/max_map_count")


class ShardedDataset:
    """One split of a dataset as a numbered sequence of images and factors.

    A shard is fetched, where it is not local, and checked against the manifest's sha256 when it is first
    needed: a damaged byte is an error, never a sample.

    Args:
        access: the dataset's place.
        split: "train", "validation" or "test".

    Raises:
        UserError: no dataset there, or an empty split. Reading raises it for a shard that is missing or
            damaged; the shard is named.
    """

    def __init__(self, access: DataAccess, split: Split) -> None:
        manifest = read_manifest(open_store(access.url))
        if manifest is None:
            raise UserError(f"no dataset in {access.url}: run stage=shard first")
        self.manifest, self._shards = manifest, manifest.of_split(split)
        if not self._shards:
            raise UserError(
                f"the {split} split of {access.url} is empty: use more samples or a larger data.{split}_fraction"
            )
        self._files = ShardFiles(access, manifest)
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self._shards])
        self._open: dict[int, OpenShard] = {}
        self._opening: dict[int, Future[OpenShard]] = {}
        self._pixels = [memoryview(b"")] * len(self._shards)  # of the open ones, at hand
        self._lines = np.zeros((2, len(self._shards)), np.int64)  # first offset and distance, of each open shard
        self._irregular: set[int] = set()
        self._pool = ThreadPoolExecutor(_THREADS, "shards")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        height, width, channels = self.manifest.image_shape
        return channels, height, width

    @property
    def num_bytes(self) -> int:
        """Of all images, uncompressed."""
        return len(self) * math.prod(self.image_shape)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples of each shard."""
        return np.diff(self._starts)

    def images(self, numbers: NDArray[np.int64], *, pin_memory: bool = False) -> Tensor:
        """Images of these samples, (n, C, H, W) uint8 in channels-last memory order."""
        channels, height, width = self.image_shape
        size = channels * height * width
        out = torch.empty(len(numbers) * size, dtype=torch.uint8, pin_memory=pin_memory)
        which, inside = self._places(numbers)
        starts, pixels = self._offsets(which, inside), self._pixels
        # Slices of memoryviews copy at the speed of memory; whatever else a row needs costs more than the copy.
        target, at = memoryview(out.numpy()), 0  # type: ignore[arg-type]
        for shard, start in zip(which.tolist(), starts.tolist()):  # noqa: B905  (strict takes time in every row)
            target[at : at + size] = pixels[shard][start : start + size]
            at += size
        return out.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def factors(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Factor values of these samples, (n, K), columns as in the manifest."""
        out = np.empty((len(numbers), len(self.manifest.factors)), np.int64)
        which, inside = self._places(numbers)
        for shard in set(which.tolist()):
            here = which == shard
            out[here] = self._open[shard].factors[inside[here]]
        return out

    def _places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each sample, open, and its number there."""
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        closed = set(which.tolist()) - self._open.keys()
        if closed:
            for _ in self.open(closed):
                pass
        return which, numbers - self._starts[which]

    def _offsets(self, which: NDArray[np.int64], inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offset of each sample's pixels in its shard."""
        first, distance = self._lines
        offsets: NDArray[np.int64] = first[which] + inside * distance[which]
        for shard in self._irregular.intersection(which.tolist()) if self._irregular else ():
            here = which == shard
            offsets[here] = self._open[shard].offsets[inside[here]]
        return offsets

    def iter_shards(self, numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor, NDArray[np.int64]]]:
        """Any number of samples with a few shards open at a time: rows of `numbers`, their images and factors."""
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        shards = np.unique(which).tolist()
        largest = max(map(self._files.copied_bytes, self._shards))
        ahead = _THREADS if self._files.in_place else min(_THREADS, max(1, self._files.access.cache_bytes // largest))
        for place, shard in enumerate(shards):
            self.prefetch(shards[place : place + ahead])
            rows = np.flatnonzero(which == shard)
            yield rows, self.images(numbers[rows]), self.factors(numbers[rows])
            self.close_except(shards[place + 1 : place + ahead])

    def read(self, numbers: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Images (n, C, H, W) and factors (n, K) of any number of samples, as by `images` and `factors`."""
        channels, height, width = self.image_shape
        images = torch.empty(len(numbers), height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        factors = np.empty((len(numbers), len(self.manifest.factors)), np.int64)
        for rows, some, labels in self.iter_shards(numbers):
            images[torch.from_numpy(rows)] = some
            factors[rows] = labels
        return images, factors

    def open(self, shards: Collection[int]) -> Iterator[int]:
        """Fetch and verify shards, several at a time; yields how many are done, after each."""
        early = set(self._opening)
        self.prefetch(shards)
        try:
            for count, shard in enumerate(shards, 1):
                if shard not in self._open:
                    self._open[shard] = self._result(shard, again=shard in early)
                    self._pixels[shard] = self._open[shard].pixels
                    self._note_stride(shard, self._open[shard].offsets)
                yield count
        except UserError:
            for future in self._opening.values():
                future.cancel()
            self._opening.clear()
            raise

    def _result(self, shard: int, *, again: bool) -> OpenShard:
        """Wait for a shard: for room, while other workers may let go of theirs; `again` after an early try failed."""
        deadline = time.monotonic() + _ROOM_SECONDS
        future = self._opening.pop(shard)
        while True:
            try:
                return future.result()
            except CacheFullError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            except UserError:
                if not again:
                    raise
                again = False
            future = self._pool.submit(self._files.open, self._shards[shard])

    def _note_stride(self, shard: int, offsets: NDArray[np.int64]) -> None:
        """Note where samples lie at equal distances, as almost all do: a JSON of another length can move some."""
        steps = np.unique(np.diff(offsets))
        if len(steps) < 2:
            self._lines[:, shard] = offsets[0], steps[0] if len(steps) else 0
        else:
            self._irregular.add(shard)

    def prefetch(self, shards: Collection[int]) -> None:
        """Begin to fetch and verify shards, several at a time."""
        for shard in shards:
            if shard not in self._open and shard not in self._opening:
                self._opening[shard] = self._pool.submit(self._files.open, self._shards[shard])

    def close_except(self, shards: Collection[int]) -> None:
        """Close all shards but these, so that their copies may be removed."""
        for held in (self._open, self._opening):
            for shard in held.keys() - set(shards):
                del held[shard]
                self._pixels[shard] = memoryview(b"")

    def check_capacity(self, window: int, batch_size: int) -> None:
        """See that there is room for what is read at a time: all, or the windows that a batch may touch.

        Raises:
            UserError: there is not, in the cache or among the open files; the message says what would help.
        """
        # A batch may touch, beside those it fills, the last window of an epoch, which may be short, and the next.
        filled = -(-batch_size // (window * int(np.median(self.shard_sizes)))) if window else 0
        count = min(window * (filled + 2) or len(self._shards), len(self._shards))
        _allow_open_files(count)
        if self._files.in_place:
            return
        sizes = sorted((self._files.copied_bytes(shard) for shard in self._shards), reverse=True)
        needed, limit = sum(sizes[:count]), self._files.access.cache_bytes
        if needed > limit:
            fitting = limit // (3 * sizes[0])
            mend = f"set train.shuffle_block_shards={fitting} or less" if fitting else "write smaller shards"
            raise UserError(
                f"data.cache_bytes={limit} is too small for the {needed:,} bytes that are read at a time: "
                f"raise it, or {mend}"
            )


def _allow_open_files(count: int) -> None:
    """Every mapped shard holds a file and a map: let this process have as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maps = int(_MAPS.read_text()) if _MAPS.exists() else 2**31
    most = min(maps, 2**31 if hard == resource.RLIM_INFINITY else hard)
    wanted = 2 * count + 512
    if wanted > most:
        raise UserError(
            f"{count} shards are more files than this process may open at once ({most}): set train.shuffle_block_shards, "
            "write larger shards (data.samples_per_task), or raise `ulimit -n` and vm.max_map_count"
        )
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
