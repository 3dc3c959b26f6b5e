"""Batches by step for one worker, read ahead of the training from shards or from memory."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from jobs.data.dataset import ShardedDataset
from jobs.data.sampling import GlobalShuffle, microbatch_positions, worker_microbatches

_AHEAD = 2  # batches that are read ahead


class BatchLoader:
    """Images by step, the same for any number of workers.

    Args:
        data: Split to read.
        order: Order of its samples.
        num_microbatches: Microbatches of a global batch.
        rank: Rank of this worker.
        world_size: Number of workers.
        device: Device that receives the images; None: CPU.
        preload: Device that keeps all images of the split from the start; None: images are read batch by batch.
    """

    def __init__(
        self,
        data: ShardedDataset,
        order: GlobalShuffle,
        *,
        num_microbatches: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        preload: torch.device | None = None,
    ) -> None:
        self.data, self.order = data, order
        self.microbatches = worker_microbatches(num_microbatches, rank, world_size)
        self.microbatch_size = order.batch_size // num_microbatches
        self._positions = microbatch_positions(self.microbatches, self.microbatch_size)
        self._device = device or torch.device("cpu")
        self._cuda = self._device.type == "cuda"
        self._copy_stream = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._preloaded = self._read_all(preload) if preload else None

    def _read_all(self, device: torch.device) -> Tensor:
        """Return all images of the split, (N, H * W * C), read a few shards at a time."""
        data = self.data
        images = torch.empty(len(data), data.num_bytes // len(data), dtype=torch.uint8, device=device)
        for rows, shard_images, _ in data.iter_shards(np.arange(len(data))):
            images[torch.from_numpy(rows).to(device)] = shard_images.permute(0, 2, 3, 1).flatten(1).to(device)
        return images

    def open(self, step: int) -> Iterator[tuple[int, int]]:
        """Open the shards that this and the following steps need, and yield the numbers of open and needed ones."""
        if self._preloaded is None:
            shards = self._shards(step) or range(len(self.data.shard_sizes))
            for count in self.data.open(shards):
                yield count, len(shards)

    def _shards(self, step: int) -> list[int]:
        """Return the shards of the current and the next shuffle block; an empty list if all shards are needed."""
        blocks = self.order.blocks(step)
        return np.concatenate(blocks).tolist() if blocks else []

    def images(self, step: int) -> Tensor:
        """Return this worker's images of a step (from 0) by microbatch, (n, C, H, W) uint8 on the device."""
        sample_ids = self.order.sample_ids(step, self._positions)
        if self._preloaded is not None:
            channels, height, width = self.data.image_shape
            rows = self._preloaded.index_select(0, torch.from_numpy(sample_ids).to(self._preloaded.device))
            images = rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            images = self.data.images(sample_ids, pin_memory=self._cuda)
            if shards := self._shards(step):
                self.data.close_except(shards)
                self.data.prefetch(shards)
        if self._copy_stream is None:
            return images
        with torch.cuda.stream(self._copy_stream):
            return images.to(self._device, non_blocking=True)

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield the `images` of the steps start..stop-1, which a thread reads ahead while the caller computes."""
        with ThreadPoolExecutor(1, "batches") as pool:
            pending = deque(pool.submit(self.images, step) for step in range(start, min(start + _AHEAD, stop)))
            try:
                for step in range(start, stop):
                    images = pending.popleft().result()
                    if step + _AHEAD < stop:
                        pending.append(pool.submit(self.images, step + _AHEAD))
                    if self._copy_stream is not None:
                        current = torch.cuda.current_stream(self._device)
                        current.wait_stream(self._copy_stream)
                        images.record_stream(current)
                    yield images
            finally:
                for future in pending:
                    future.cancel()
