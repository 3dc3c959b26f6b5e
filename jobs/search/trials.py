"""Trials of a search: their record, their ranking, the Pareto front, and their events. Imports no Ray and no torch."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.events import Event
from jobs.search.space import Values

Status = Literal["running", "finished", "stopped", "failed"]


def point_key(values: Values) -> str:
    """Return a key that identifies a point of the search space: JSON with sorted keys."""
    return json.dumps(dict(sorted(values.items())))


@dataclass
class Trial:
    """One point of the search space and its training.

    Attributes:
        number: Number of the trial, from 0.
        status: `finished`, `stopped` early by the scheduler, `failed`, or `running`, also if interrupted.
        reason: Reason of a failure.
        run: Folder name of the training in `runs/`.
        ended_ms: Time of the end, in ms since the epoch.
        uploaded: Whether MLflow has the curve, settings and checkpoints.
        plotted: Whether MLflow has the figures.
        reports: Step and metrics of each report, steps rising.
    """

    number: int
    values: Values
    status: Status = "running"
    reason: str = ""
    run: str = ""
    ended_ms: int = 0
    uploaded: bool = False
    plotted: bool = False
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Key of the trial's point."""
        return point_key(self.values)

    @property
    def is_done(self) -> bool:
        """Whether the trial is finished, stopped or failed."""
        return self.status != "running"

    @property
    def step(self) -> int:
        """Step of the last report, 0 before the first."""
        return self.reports[-1][0] if self.reports else 0

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last report."""
        return self.reports[-1][1] if self.reports else {}

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Append a report unless it repeats an earlier one, and return whether it was appended."""
        if step <= self.step:
            return False
        self.reports.append((step, dict(metrics)))
        return True

    def objective_values(self, objectives: Sequence[str]) -> list[float] | None:
        """Return the last report's metrics in the order of the objectives, or None if one is missing or not finite."""
        values = [self.metrics.get(name, math.nan) for name in objectives]
        return values if all(map(math.isfinite, values)) else None


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Return the finished trials with all metrics that no other one dominates, in the given order.

    A trial dominates another if it is as good in every objective, which are maximized, and better in one.
    """
    values = [
        (trial, vector)
        for trial in trials
        if trial.status == "finished" and (vector := trial.objective_values(objectives))
    ]
    return [
        trial
        for trial, vector in values
        if not any(other != vector and all(a >= b for a, b in zip(other, vector, strict=True)) for _, other in values)
    ]


def best_first(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Rank trials: the Pareto front, then finished, stopped, running and failed ones, each by the first objective."""
    front = {trial.number for trial in pareto_front(trials, objectives)}
    groups: list[Status] = ["finished", "stopped", "running", "failed"]

    def rank(trial: Trial) -> tuple[int, float, int]:
        value = trial.metrics.get(objectives[0], math.nan)
        group = -1 if trial.number in front else groups.index(trial.status)
        return group, -value if math.isfinite(value) else math.inf, trial.number

    return sorted(trials, key=rank)


def best_so_far(trials: Sequence[Trial], objectives: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """Return the best metrics after each trial that is done, with the time in ms since the epoch.

    The metrics are `best/OBJECTIVE` and the counts `trials/STATUS`.
    """
    curve: list[tuple[int, dict[str, float]]] = []
    best: dict[str, float] = {}
    counts: Counter[str] = Counter(finished=0, stopped=0, failed=0)
    for trial in sorted((trial for trial in trials if trial.is_done), key=lambda trial: (trial.ended_ms, trial.number)):
        counts[trial.status] += 1
        for name in objectives:
            value = trial.metrics.get(name, math.nan)
            if math.isfinite(value):
                best[f"best/{name}"] = max(value, best.get(f"best/{name}", value))
        curve.append((trial.ended_ms, {**best, **{f"trials/{name}": float(count) for name, count in counts.items()}}))
    return curve


@dataclass(frozen=True)
class TrialReport:
    """A report of a trial to Ray Tune, with metrics on validation images by objective; higher is better."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """The last event of a trial: finished, stopped or failed, and the reason of a failure if Ray Tune knows it."""

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class TrialEvent:
    """An event of a trial's training, its report or its result, with the trial's number and searched settings."""

    number: int
    values: Values
    event: Event | TrialReport | TrialResult
