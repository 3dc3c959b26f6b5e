"""Batches by step: which worker reads what, ahead of the training, from shards or from memory."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import Order, slice_places, worker_slices

_AHEAD = 2  # batches that wait for the training


class BatchLoader:
    """Images by step, the same for any number of workers.

    Args:
        data: the split to read.
        order: of its samples.
        num_microbatches: fixed slices of a global batch.
        rank: of this worker.
        world_size: how many workers there are.
        device: where the images go.
        resident: where all images of the split are kept from the start; None: they are read batch by batch.
    """

    def __init__(
        self,
        data: ShardedDataset,
        order: Order,
        *,
        num_microbatches: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        resident: torch.device | None = None,
    ) -> None:
        self.data, self.order = data, order
        self._num_slices, self.slices = num_microbatches, worker_slices(num_microbatches, rank, world_size)
        self._places = slice_places(self.slices, self.slice_size)
        self._device = device or torch.device("cpu")
        self._cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._resident = self._read_all(resident) if resident else None

    @property
    def slice_size(self) -> int:
        """Images per slice."""
        return self.order.batch_size // self._num_slices

    def open(self, step: int) -> Iterator[tuple[int, int]]:
        """Open the shards that `step` and those after it need; yields how many of how many are open."""
        if self._resident is None:
            windows = self.order.windows(step)
            shards = np.concatenate(windows).tolist() if windows else range(len(self.data.shard_sizes))
            for count in self.data.open(shards):
                yield count, len(shards)

    def images(self, step: int) -> Tensor:
        """This worker's images of `step`, its slices one after the other: (n, C, H, W) uint8 on the device."""
        mine = self.order.share(step, self._places)
        images = self._read(step, mine) if self._resident is None else self._gather(self._resident, mine)
        if self._copies is None:
            return images
        with torch.cuda.stream(self._copies):
            return images.to(self._device, non_blocking=True)

    def _read(self, step: int, numbers: NDArray[np.int64]) -> Tensor:
        images = self.data.images(numbers, pin_memory=self._cuda)
        windows = self.order.windows(step)
        if windows:
            shards = np.concatenate(windows).tolist()
            self.data.close_except(shards)
            self.data.prefetch(shards)
        return images

    def _gather(self, resident: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        channels, height, width = self.data.image_shape
        images = resident.index_select(0, torch.from_numpy(numbers).to(resident.device))
        return images.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Images of the steps start..stop-1, read ahead by a thread while the caller computes."""
        with ThreadPoolExecutor(1, "batches") as pool:
            pending = deque(pool.submit(self.images, step) for step in range(start, min(start + _AHEAD, stop)))
            try:
                for step in range(start, stop):
                    images = pending.popleft().result()
                    if step + _AHEAD < stop:
                        pending.append(pool.submit(self.images, step + _AHEAD))
                    if self._copies is not None:
                        current = torch.cuda.current_stream(self._device)
                        current.wait_stream(self._copies)
                        images.record_stream(current)
                    yield images
            finally:
                for waiting in pending:
                    waiting.cancel()

    def _read_all(self, device: torch.device) -> Tensor:
        """All images of the split, (N, H * W * C), a few shards at a time."""
        data = self.data
        everything = torch.empty(len(data), data.num_bytes // len(data), dtype=torch.uint8, device=device)
        for rows, images, _ in data.iter_shards(np.arange(len(data))):
            everything[torch.from_numpy(rows).to(device)] = images.permute(0, 2, 3, 1).flatten(1).to(device)
        return everything
