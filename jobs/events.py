"""Events that a training worker sends to the driver."""

import json
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class MetricPoint:
    """Metrics by name, such as `train/loss`, after `step` updates.

    The time, in ms since the epoch, is fixed on creation, so that sending a point twice changes nothing.
    """

    step: int
    time_ms: int
    metrics: dict[str, float]

    @cached_property
    def json(self) -> str:
        """The point as JSON, encoded once, because each checkpoint holds the whole curve."""
        return json.dumps({"step": self.step, "time_ms": self.time_ms, "metrics": self.metrics})


@dataclass(frozen=True)
class WorkersStarted:
    """A worker group is running and looks for its checkpoint."""


@dataclass(frozen=True)
class TrainingResumed:
    """A worker group starts, or starts again, after `step` updates.

    Attributes:
        history: Learning curve up to that step.
        warnings: Texts of the training's earlier warnings by key.
    """

    step: int
    history: list[MetricPoint] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardsOpened:
    """Some of the `total` shards that are needed first are on the node and verified."""

    shards: int
    total: int


@dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint of `step` is in the store. No earlier step will be computed again."""

    step: int


@dataclass(frozen=True)
class TrainingWarning:
    """The user gets a line and MLflow a tag `warning.KEY` (letters, digits and underscores). Training continues."""

    step: int
    key: str
    text: str


@dataclass(frozen=True)
class TrainingStopped:
    """Training stopped on request, with the checkpoint of `step` in the store."""

    step: int


@dataclass(frozen=True)
class WorkerFailed:
    """A worker met an error, described in one line.

    Attributes:
        reason: One line for the user.
        retryable: Whether a restart of the workers may succeed.
        retry: Whether the same command can succeed, as `UserError.retry`.
        trial_specific: Whether the cause is this training, not data, storage or cluster, which all trials share.
    """

    reason: str
    retryable: bool = False
    trial_specific: bool = False
    retry: bool = False


Event = (
    MetricPoint
    | WorkersStarted
    | TrainingResumed
    | ShardsOpened
    | CheckpointSaved
    | TrainingWarning
    | TrainingStopped
    | WorkerFailed
)
