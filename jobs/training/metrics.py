"""The learning curve: what the steps return, averaged into a point from time to time."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.events import Event, MetricPoint, TrainingResumed
from jobs.training.monitor import TrainingMonitor
from jobs.training.state import Training
from jobs.training.step import BAD, KL, LOSS, NORM, RECONSTRUCTION


class MetricAccumulator:
    """Averages what the steps return, and posts a point from time to time.

    Values stay on the device until then, so that no step waits for it.

    Args:
        training: whose curve it is; the curve goes on where it was restored.
        health: watches the points.
        post: receives the points; called on rank 0 only.
    """

    def __init__(self, training: Training, health: TrainingMonitor, post: Callable[[Event], None]) -> None:
        worker, restored = training.worker, training.restored
        self._worker, self._health, self._post = worker, health, post
        self._exact = training.job.train.deterministic
        self._share = 1.0 if self._exact else len(training.loader.slices) / training.job.train.num_microbatches
        self.history = list(restored.history)
        # Rows that are means over all workers already: as one worker's share they count once.
        counted = self._exact or worker.rank == 0
        self._taken = [torch.tensor(row, device=worker.device) * counted for row in restored.pending]
        self._skipped = _skipped_before(self.history)
        self._clock, self._images = time.monotonic(), 0
        if worker.rank == 0:
            post(TrainingResumed(training.step, list(self.history)))

    @property
    def pending(self) -> list[list[float]]:
        """Values of the steps since the last point; of several workers in plain mode, this one's estimate."""
        return [row.tolist() for row in torch.stack(self._taken).cpu() / self._share] if self._taken else []

    def restart_clock(self) -> None:
        """Leave the time of a validation out of images/s."""
        self._clock, self._images = time.monotonic(), 0

    def add(self, values: Tensor, step: int, images: int, *, log: bool) -> None:
        """Take in one step; every worker must call this with the same `log`, which adds up the workers.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        self._taken.append(values)
        self._images += images
        if not log:
            return
        rows = self._rows()
        self._taken.clear()
        bad = rows[:, BAD] > 0.5
        self._health.check_finite(step, bad.tolist())
        self._skipped += int(bad.sum())
        seconds = max(time.monotonic() - self._clock, 1e-9)
        speed = {"train/images_per_second": self._images / seconds, "train/skipped_steps": float(self._skipped)}
        metrics = _means(rows[~bad])
        self._health.check_collapse(step, [metrics[name] for name in metrics if name.startswith("train/kl_rung_")])
        self.point(step, {**metrics, **speed})
        self.restart_clock()

    def _rows(self) -> Tensor:
        """Values of the steps since the last point, over all workers: (steps, 4 + L) float64 on the CPU."""
        rows = torch.stack(self._taken)
        if self._worker.world_size > 1 and not self._exact:
            dist.all_reduce(rows)
        return rows.cpu().double()

    def point(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point to the history and post it."""
        if self._worker.rank == 0 and metrics:
            point = MetricPoint(step, time.time_ns() // 1_000_000, metrics)
            self.history.append(point)
            self._post(point)


def _means(rows: Tensor) -> dict[str, float]:
    """Over the steps that were finite; nothing if none was."""
    if not len(rows):
        return {}
    mean = rows.mean(0).tolist()
    kl = mean[KL:]
    return {
        "train/loss": mean[LOSS],
        "train/reconstruction": mean[RECONSTRUCTION],
        "train/grad_norm": mean[NORM],
        "train/kl": sum(kl),
        **{f"train/kl_rung_{rung}": value for rung, value in enumerate(kl)},
    }


def _skipped_before(history: list[MetricPoint]) -> int:
    counts = [point.metrics["train/skipped_steps"] for point in history if "train/skipped_steps" in point.metrics]
    return int(counts[-1]) if counts else 0
