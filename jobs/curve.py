"""The learning curve: what the steps return, averaged into a point from time to time."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from jobs.messages import Message, Point, Started

SKIPPED = 3  # place of the flag among the values of a step


class Curve:
    """Averages what the steps return, and posts a point from time to time."""

    def __init__(
        self, rank: int, world_size: int, device: torch.device, history: list[Point], post: Callable[[Message], None]
    ) -> None:
        self._rank, self._world_size, self._device = rank, world_size, device
        self._history, self._post = history, post
        self._taken: list[Tensor] = []
        self._skipped = _skipped_before(history)
        self._clock, self._images = time.monotonic(), 0

    def started(self, step: int) -> None:
        """Say where this worker group begins."""
        if self._rank == 0:
            self._post(Started(step, list(self._history)))

    def restart_clock(self) -> None:
        """Leave the time of a checkpoint out of images/s."""
        self._clock, self._images = time.monotonic(), 0

    def add(self, values: Tensor, step: int, images: int, *, log: bool) -> None:
        """Take in one step; every worker must call this with the same `log`, which adds up the workers."""
        if values[SKIPPED]:
            self._skipped += 1
        else:
            self._taken.append(values)
        self._images += images
        if not log:
            return
        seconds = max(time.monotonic() - self._clock, 1e-9)
        speed = {"train/images_per_second": self._images / seconds, "train/skipped_steps": float(self._skipped)}
        self.point(step, {**self._means(), **speed})
        self._taken.clear()
        self.restart_clock()

    def _means(self) -> dict[str, float]:
        """Over the steps since the last point and over the workers; nothing if all were skipped."""
        if not self._taken:  # on every worker or on none: the gradient that was not finite is shared
            return {}
        mean = torch.stack(self._taken).mean(0)
        if self._world_size > 1:
            mean = mean.to(self._device)
            torch.distributed.all_reduce(mean)
            mean = mean.cpu() / self._world_size
        loss, reconstruction, norm, _, *kl = mean.tolist()
        return {
            "train/loss": loss,
            "train/reconstruction": reconstruction,
            "train/grad_norm": norm,
            "train/kl": sum(kl),
            **{f"train/kl_rung_{rung}": value for rung, value in enumerate(kl)},
        }

    def point(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point to the history and post it."""
        if self._rank == 0:
            point = Point(step, time.time_ns() // 1_000_000, metrics)
            self._history.append(point)
            self._post(point)


def _skipped_before(history: list[Point]) -> int:
    counts = [point.metrics["train/skipped_steps"] for point in history if "train/skipped_steps" in point.metrics]
    return int(counts[-1]) if counts else 0
