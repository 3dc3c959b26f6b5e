"""Events that a training worker sends to the driver."""

import json
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class MetricPoint:
    """Metrics of one step; the time is fixed here, so that sending a point twice changes nothing."""

    step: int
    time_ms: int  # since the epoch
    metrics: dict[str, float]

    @cached_property
    def json(self) -> str:
        """Made once: each checkpoint holds the whole curve."""
        return json.dumps({"step": self.step, "time_ms": self.time_ms, "metrics": self.metrics})


@dataclass(frozen=True)
class WorkersStarted:
    """A worker group is up, and looks for its checkpoint."""


@dataclass(frozen=True)
class TrainingResumed:
    """A worker group begins, or begins again, after `step` steps whose curve is `history`."""

    step: int
    history: list[MetricPoint] = field(default_factory=list)


@dataclass(frozen=True)
class ShardsOpened:
    """So many of the shards that are needed first are on the node and verified."""

    shards: int
    total: int


@dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint of `step` is in the store: no earlier step will ever be computed again."""

    step: int


@dataclass(frozen=True)
class TrainingWarning:
    """Something at `step` that the person should know of; training goes on."""

    step: int
    key: str  # of the MLflow tag `warning.KEY`: letters, digits and underscores
    text: str


@dataclass(frozen=True)
class TrainingStopped:
    """Training was asked to stop, and `step` is in the store."""

    step: int


@dataclass(frozen=True)
class WorkerFailed:
    """A worker met an error."""

    reason: str  # for the person
    retryable: bool = False  # a restart of the workers may succeed
    trial_specific: bool = False  # the cause is this training itself, not data, storage or cluster, which trials share


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
