"""Failures of a training that raise no error by themselves: nonfinite steps and collapsed rungs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from jobs.config import TrainConfig
from jobs.errors import TrainingError
from jobs.events import Event, TrainingWarning
from vlae.config import ObjectiveConfig, ProgressiveConfig
from vlae.metrics.rates import SONDERBY_ACTIVE_KL
from vlae.schedule import rung_schedule, warmup

_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
_WARMED_UP = 0.99  # of the KL's weight, because an exponential warm-up only approaches its end


class TrainingMonitor:
    """Checks the points of a learning curve; `collapsed_kl` is the KL of each collapsed rung in nats, bottom first."""

    def __init__(
        self,
        train: TrainConfig,
        objective: ObjectiveConfig,
        progressive: ProgressiveConfig,
        collapsed_kl: Sequence[float],
        emit: Callable[[Event], None],
    ) -> None:
        self._train, self._objective, self._progressive = train, objective, progressive
        self._collapsed_kl, self._emit = collapsed_kl, emit
        self._nonfinite_in_a_row = 0
        self._collapsed: set[int] = set()  # rungs with a warning

    def check_finite(self, step: int, nonfinite: Sequence[bool]) -> None:
        """Count nonfinite steps in a row from one flag per step since the last call.

        Raises:
            TrainingError: `train.max_nonfinite_steps` steps in a row were not finite.
        """
        for is_nonfinite in nonfinite:
            self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if is_nonfinite else 0
            if self._nonfinite_in_a_row >= self._train.max_nonfinite_steps:
                raise TrainingError(
                    f"train.max_nonfinite_steps: up to step {step}, {self._nonfinite_in_a_row} steps in a row had a "
                    "loss or gradient that is not finite; the weights are unchanged since. Use a smaller "
                    "train.learning_rate or train.max_grad_norm, or train.precision=fp32."
                )

    def check_collapse(self, step: int, kl: Sequence[float]) -> None:
        """Warn of collapsed rungs once the warm-up of the KL is over, once for each collapse.

        A rung is collapsed if its mean KL (nats, bottom first) is less than `SONDERBY_ACTIVE_KL` above `collapsed_kl`.
        """
        if warmup(self._objective, step) < _WARMED_UP:
            return
        gates = rung_schedule(self._objective, self._progressive, step, len(kl)).output_gates
        for rung, value in enumerate(kl):
            if (
                value >= self._collapsed_kl[rung] + SONDERBY_ACTIVE_KL or gates[rung] < 1
            ):  # inactive yet, or being faded in
                self._collapsed.discard(rung)
            elif rung not in self._collapsed:
                self._collapsed.add(rung)
                text = f"rung {rung} is collapsed at step {step}: its KL is {value:.2g} nats"
                self._emit(TrainingWarning(step, f"rung_{rung}_collapsed", text))


@contextmanager
def memory_errors(train: TrainConfig) -> Iterator[None]:
    """Raise the out-of-memory errors of torch and numpy in a `with` block as TrainingError with advice."""
    passes = train.gradient_accumulation_steps
    message = (
        f"train.batch_size={train.batch_size}: out of memory in {passes} passes of each worker; the last checkpoint is "
        f"kept. Use train.gradient_accumulation_steps={2 * passes}, a smaller train.batch_size or a smaller model."
    )
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TrainingError(message) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _NO_MEMORY):
            raise TrainingError(message) from error
        raise
