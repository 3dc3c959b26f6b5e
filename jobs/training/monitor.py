"""What goes wrong in a training without an error: steps that are not finite, rungs that die."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from jobs.config import TrainConfig
from jobs.errors import TrainingError
from jobs.events import Event, TrainingWarning
from vlae.config import ObjectiveConfig, ProgressiveConfig
from vlae.metrics.rates import ACTIVE
from vlae.schedule import rung_schedule, warmup

_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
_WARM = 0.99  # of the KL's weight: an exponential warm-up comes no nearer to its end in any useful time


class TrainingMonitor:
    """Watches the points of a curve.

    Args:
        train, objective, progressive: settings of the training.
        idle: KL of each rung when it tells nothing, nats, bottom first.
        post: receives a warning when the mean KL of a rung falls below `ACTIVE` nats more than that, or has never been
            above when the KL's warm-up is over; once for each time.
    """

    def __init__(
        self,
        train: TrainConfig,
        objective: ObjectiveConfig,
        progressive: ProgressiveConfig,
        idle: Sequence[float],
        post: Callable[[Event], None],
    ) -> None:
        self._train, self._objective, self._progressive = train, objective, progressive
        self._idle, self._post = idle, post
        self._bad_in_a_row = 0
        self._dead: set[int] = set()  # rungs that were warned of

    def check_finite(self, step: int, bad: Sequence[bool]) -> None:
        """Take in whether each of the last steps was not finite.

        Raises:
            TrainingError: too many were, one after the other.
        """
        for wrong in bad:
            self._bad_in_a_row = self._bad_in_a_row + 1 if wrong else 0
            if self._bad_in_a_row >= self._train.max_nonfinite_steps:
                raise TrainingError(
                    f"up to step {step}, {self._bad_in_a_row} steps in a row (train.max_nonfinite_steps) had a loss or "
                    "gradient that is not finite; the weights are as before: use a smaller train.learning_rate or "
                    "train.max_grad_norm, or train.precision=fp32"
                )

    def check_collapse(self, step: int, rates: Sequence[float]) -> None:
        """Take in the mean KL of each rung, nats, bottom first; nothing where no step was finite."""
        if not rates or warmup(self._objective, step) < _WARM:
            return
        taking_part = rung_schedule(self._objective, self._progressive, step, len(rates)).writes
        for rung, rate in enumerate(rates):
            if rate >= self._idle[rung] + ACTIVE or taking_part[rung] < 1:  # it waits, or is being faded in
                self._dead.discard(rung)
            elif rung not in self._dead:
                self._dead.add(rung)
                text = f"rung {rung} costs {rate:.2g} nat at step {step}: it tells nothing of the image"
                self._post(TrainingWarning(step, f"rung_{rung}_dies", text))


@contextmanager
def memory_errors(train: TrainConfig) -> Iterator[None]:
    """Say what to do when the memory is full.

    Raises:
        TrainingError: instead of torch's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in _NO_MEMORY):
            raise
        raise TrainingError(
            f"out of memory with train.batch_size={train.batch_size} in {train.gradient_accumulation_steps} passes of each worker: "
            f"use train.gradient_accumulation_steps={2 * train.gradient_accumulation_steps}, a smaller train.batch_size or a smaller model; "
            "the last checkpoint is kept"
        ) from error
