"""Metrics of the steps, and the learning curve that averages them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.events import Event, MetricPoint
from jobs.training.monitor import TrainingMonitor
from jobs.training.state import Training

_SKIPPED, _SPEED = "train/skipped_steps", "train/images_per_second"


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step on the device. Losses are batch means in nats per image.

    Attributes:
        loss: Objective that training minimizes.
        reconstruction: Negative log-likelihood.
        grad_norm: Norm of the gradient before clipping.
        nonfinite: 1 if the update was skipped because its loss or gradient was not finite, else 0.
        kl: KL divergence of each rung, bottom first, (L,).
    """

    loss: Tensor
    reconstruction: Tensor
    grad_norm: Tensor
    nonfinite: Tensor
    kl: Tensor

    def pack(self) -> Tensor:
        """Return all metrics as one float32 tensor, (4 + L,), so that one transfer moves them."""
        scalars = torch.stack([self.loss, self.reconstruction, self.grad_norm, self.nonfinite])
        return torch.cat([scalars, self.kl]).float()

    @classmethod
    def unpack(cls, packed: Tensor) -> "StepMetrics":
        """Return the metrics of a packed tensor (..., 4 + L), as views that keep leading dimensions."""
        loss, reconstruction, grad_norm, nonfinite = packed[..., :4].unbind(-1)
        return cls(loss, reconstruction, grad_norm, nonfinite, kl=packed[..., 4:])

    def to_dict(self) -> dict[str, float]:
        """Return the metrics of the learning curve by name, from scalars on the CPU."""
        kl = self.kl.tolist()
        return {
            "train/loss": self.loss.item(),
            "train/reconstruction": self.reconstruction.item(),
            "train/grad_norm": self.grad_norm.item(),
            "train/kl": sum(kl),
            **{f"train/kl_rung_{rung}": value for rung, value in enumerate(kl)},
        }


class MetricAccumulator:
    """Averages the metrics of the steps into points of the learning curve `history`, which continues the restored one.

    Metrics stay on the device until a point is due, so that no step waits for a transfer.
    """

    def __init__(self, training: Training, monitor: TrainingMonitor, emit: Callable[[Event], None]) -> None:
        restored, worker = training.restored, training.worker
        self._monitor, self._emit = monitor, emit
        self._weight = training.metric_weight
        self._all_reduce = worker.world_size > 1 and not training.job.train.deterministic
        self.history = list(restored.history)
        # Restored rows are means over all workers, so one worker alone adds them to the sum.
        weight = worker.rank == 0 or not self._all_reduce
        self._rows = [torch.tensor(row, device=worker.device) * weight for row in restored.pending]
        skipped = (point.metrics[_SKIPPED] for point in reversed(self.history) if _SKIPPED in point.metrics)
        self._num_skipped = int(next(skipped, 0))
        self.restart_clock()

    @property
    def pending(self) -> list[list[float]]:
        """Packed metrics of the steps since the last point; of several plain workers, this one's estimate."""
        return (torch.stack(self._rows).cpu() / self._weight).tolist() if self._rows else []

    def restart_clock(self) -> None:
        """Exclude the time until now from images/s."""
        self._clock, self._num_images = time.monotonic(), 0

    def add(self, metrics: StepMetrics, step: int, num_images: int, *, log: bool) -> None:
        """Add the metrics of a step, weighted by this worker's `metric_weight`, and `num_images` of the global batch.

        If `log`, which must be the same on all workers, add a point to the curve, which reduces over the workers.
        """
        self._rows.append(metrics.pack())
        self._num_images += num_images
        if not log:
            return
        rows = torch.stack(self._rows)
        self._rows.clear()
        if self._all_reduce:
            dist.all_reduce(rows)
        rows = rows.cpu().double()
        nonfinite = StepMetrics.unpack(rows).nonfinite > 0.5
        self._monitor.check_finite(step, nonfinite.tolist())
        self._num_skipped += int(nonfinite.sum())
        point = {}
        if not nonfinite.all():
            mean = StepMetrics.unpack(rows[~nonfinite].mean(0))
            self._monitor.check_collapse(step, mean.kl.tolist())
            point = mean.to_dict()
        seconds = max(time.monotonic() - self._clock, 1e-9)
        self.add_point(step, {**point, _SPEED: self._num_images / seconds, _SKIPPED: float(self._num_skipped)})
        self.restart_clock()

    def add_point(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point of metrics by name to the curve and emit it."""
        point = MetricPoint(step, time.time_ns() // 1_000_000, metrics)
        self.history.append(point)
        self._emit(point)
