"""The decision whether a training has failed for good. It is computed from events alone, without Ray or a clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import TrainingError, UserError
from jobs.events import CheckpointSaved, Event, TrainingResumed, TrainingStopped, WorkerFailed, WorkersStarted


@dataclass
class FailurePolicy:
    """Count the starts of a training's workers and decide when to give up.

    Ray Train restarts a failed worker group without a limit. A training fails for good if an error cannot be
    retried, or if the workers failed more than `max_failures` times without a checkpoint in between.

    Attributes:
        num_starts: Starts of a worker group since the last checkpoint.
        is_running: Whether the workers train and can still save a checkpoint.
        reason: Message of the first failure of the present worker group; the others follow from it.
    """

    max_failures: int
    num_starts: int = 0
    is_running: bool = False
    reason: str = ""

    def decide(self, events: Sequence[Event]) -> UserError | None:
        """Return the error that ends the training after new events, oldest first, or None if the training goes on."""
        for event in events:
            match event:
                case WorkersStarted():
                    self.num_starts, self.is_running = self.num_starts + 1, False
                    if self.num_starts > self.max_failures + 1:
                        count = f"{self.num_starts - 1} times without a checkpoint in between"
                        return self.error(f"train.max_failures={self.max_failures}: training failed {count}")
                    self.reason = ""
                case TrainingResumed():
                    self.is_running = True
                case CheckpointSaved():
                    self.num_starts = 1
                case TrainingStopped():
                    self.is_running = False
                case WorkerFailed(reason, retryable, trial_specific, retry):
                    if not retryable:
                        return (TrainingError if trial_specific else UserError)(reason, retry=retry)
                    self.reason = self.reason or reason
        return None

    def error(self, message: str) -> TrainingError:
        """Return an error with `message` and its cause, which can be retried because the last checkpoint is kept."""
        reason = self.reason or "a worker process ended without a message (killed or out of memory)"
        return TrainingError(f"{message}: {reason.rstrip('.')}. The last checkpoint is kept.", retry=True)
