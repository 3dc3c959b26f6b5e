"""Read samples of a sharded dataset by number, and batches by step."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.manifest import Manifest, Shard, read_manifest
from jobs.data.order import batch_indices, worker_slices
from jobs.data.source import Split
from jobs.errors import UserError
from jobs.files import file_sha256


class ShardedSplit:
    """One split of a dataset as a numbered sequence of images and factors.

    Every tar and index is checked against the manifest's sha256 when it is opened: a damaged byte is an
    error, never a sample.

    Args:
        folder: where the manifest is.
        split: "train", "validation" or "test".

    Raises:
        UserError: no dataset there, an empty split, or a shard that is missing or damaged (it is named).
    """

    def __init__(self, folder: Path, split: Split) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError(f"no dataset in {folder}: run stage=shard first")
        self.manifest: Manifest = manifest
        self._shards = manifest.of_split(split)
        if not self._shards:
            raise UserError(
                f"the {split} split of {folder} is empty: use more samples or a larger data.{split}_fraction"
            )
        self._bytes = [_open_verified(folder / f"{shard.name}.tar", shard.sha256) for shard in self._shards]
        self._index = [_open_index(folder, shard) for shard in self._shards]
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        height, width, channels = self.manifest.image_shape
        return channels, height, width

    def images(self, numbers: NDArray[np.int64]) -> Tensor:
        """Images of these samples, (n, C, H, W) uint8 in channels-last memory order."""
        channels, height, width = self.image_shape
        size = channels * height * width
        out = np.empty((len(numbers), size), np.uint8)
        for row, (tar, (start, _, _)) in enumerate(self._rows(numbers)):
            out[row] = tar[start : start + size]
        return torch.from_numpy(out).view(-1, height, width, channels).permute(0, 3, 1, 2)

    def factors(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Factor values of these samples, (n, K), columns as in the manifest."""
        names = [factor.name for factor in self.manifest.factors]
        out = np.empty((len(numbers), len(names)), np.int64)
        for row, (tar, (_, start, length)) in enumerate(self._rows(numbers)):
            values = json.loads(tar[start : start + length].tobytes())
            out[row] = [values[name] for name in names]
        return out

    def _rows(self, numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """The tar and the row of its index of each sample."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
            yield self._bytes[shard], self._index[shard][number - self._starts[shard]]


class BatchLoader:
    """Images by (step, slice), the same for any number of workers.

    Args:
        data: the split to read.
        seed: of the order.
        batch_size: global batch, a multiple of num_slices.
        num_slices: fixed slices of a global batch.
        rank, world_size: which slices are this worker's.
    """

    def __init__(
        self, data: ShardedSplit, *, seed: int, batch_size: int, num_slices: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.data, self.seed, self.batch_size, self.num_slices = data, seed, batch_size, num_slices
        self.slices = worker_slices(num_slices, rank, world_size)

    @property
    def slice_size(self) -> int:
        """Images per slice."""
        return self.batch_size // self.num_slices

    def images(self, step: int) -> Tensor:
        """This worker's images of `step`, its slices one after the other: (n, C, H, W) uint8."""
        indices = batch_indices(self.seed, step, self.batch_size, len(self.data))
        mine = indices.reshape(self.num_slices, -1)[self.slices.start : self.slices.stop]
        return self.data.images(mine.reshape(-1))


def _open_verified(path: Path, sha256: str) -> NDArray[np.uint8]:
    try:
        digest = file_sha256(path)
    except FileNotFoundError:
        raise UserError(f"shard {path} is missing: write it again with force=shard") from None
    if digest != sha256:
        raise UserError(f"shard {path} is damaged (sha256 {digest[:12]}, manifest {sha256[:12]}): use force=shard")
    return np.memmap(path, np.uint8, mode="r")


def _open_index(folder: Path, shard: Shard) -> NDArray[np.int64]:
    path = folder / f"{shard.name}.index.npy"
    _open_verified(path, shard.index_sha256)
    index: NDArray[np.int64] = np.load(path, allow_pickle=False)
    return index
