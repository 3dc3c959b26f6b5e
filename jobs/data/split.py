"""One split of a sharded dataset: its samples by number."""

import math
import resource
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.manifest import read_manifest
from jobs.data.shard_files import DataAccess, OpenShard, ShardFiles
from jobs.data.source import Split
from jobs.errors import UserError
from jobs.store.open import open_store

_THREADS = 8  # that fetch and verify shards


class ShardedSplit:
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
        for shard, start in zip(which.tolist(), starts.tolist(), strict=True):
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
        for _ in self.open(set(which.tolist()) - self._open.keys()):
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

    def open(self, shards: Collection[int]) -> Iterator[int]:
        """Fetch and verify shards, several at a time; yields how many are done, after each."""
        self.prepare(shards)
        for count, shard in enumerate(shards, 1):
            if shard not in self._open:
                self._open[shard] = self._opening.pop(shard).result()
                self._pixels[shard] = self._open[shard].pixels
                self._draw_line(shard, self._open[shard].offsets)
            yield count

    def _draw_line(self, shard: int, offsets: NDArray[np.int64]) -> None:
        """Note where samples lie at equal distances, as almost all do: a JSON of another length can move some."""
        steps = np.unique(np.diff(offsets))
        if len(steps) < 2:
            self._lines[:, shard] = offsets[0], steps[0] if len(steps) else 0
        else:
            self._irregular.add(shard)

    def prepare(self, shards: Collection[int]) -> None:
        """Begin to fetch and verify shards, several at a time."""
        for shard in shards:
            if shard not in self._open and shard not in self._opening:
                self._opening[shard] = self._pool.submit(self._files.open, self._shards[shard])

    def retain(self, shards: Collection[int]) -> None:
        """Close all shards but these, so that their copies may be removed."""
        for held in (self._open, self._opening):
            for shard in held.keys() - set(shards):
                del held[shard]
                self._pixels[shard] = memoryview(b"")

    def check_room(self, window: int) -> None:
        """See that there is room for what is read at a time: all, or two windows of so many shards.

        Raises:
            UserError: there is not, in the cache or among the open files; the message says what would help.
        """
        _allow_open_files(min(2 * window or len(self._shards), len(self._shards)))
        if self._files.in_place:
            return
        sizes = sorted((self._files.copied_bytes(shard) for shard in self._shards), reverse=True)
        needed, limit = sum(sizes[: 2 * window or None]), self._files.access.cache_bytes
        if needed > limit:
            fitting = limit // (2 * sizes[0])
            mend = f"set train.shuffle_window={fitting} or less" if fitting else "write smaller shards"
            raise UserError(
                f"data.cache_bytes={limit} is too small for the {needed:,} bytes that are read at a time: "
                f"raise it, or {mend}"
            )


def _allow_open_files(count: int) -> None:
    """Every mapped shard holds a file: let this process have as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            raise UserError(
                f"{count} shards are more files than this process may open ({hard}): raise `ulimit -n`, "
                "set train.shuffle_window, or write larger shards (data.samples_per_task)"
            )
