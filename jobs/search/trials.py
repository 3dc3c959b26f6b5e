"""Trials of a search: what is known of each, which come first, which no other beats. Light: no Ray, no torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from jobs.events import Event
from jobs.search.space import Values

Status = Literal["running", "finished", "stopped", "failed"]


def point_key(values: Values) -> str:
    """Names a point of the space."""
    return json.dumps(dict(sorted(values.items())))


@dataclass
class Trial:
    """One point of the space and what became of it."""

    number: int
    values: Values
    status: Status = "running"  # stopped: by the scheduler; running: or killed in the midst of it
    reason: str = ""  # of a failure
    run: str = ""  # name of its folder in runs/
    ended_ms: int = 0  # since the epoch
    logged: bool = False  # whether MLflow has all of it, but the pictures
    drawn: bool = False  # whether it has the pictures
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # step and scores, steps rising

    @property
    def key(self) -> str:
        """Names its point."""
        return point_key(self.values)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.status != "running"

    @property
    def step(self) -> int:
        """Of the last report."""
        return self.reports[-1][0] if self.reports else 0

    @property
    def scores(self) -> dict[str, float]:
        """Of the last report."""
        return self.reports[-1][1] if self.reports else {}

    def add(self, step: int, scores: Mapping[str, float]) -> bool:
        """Take in a report, unless it is an old one that was given again."""
        if step <= self.step:
            return False
        self.reports.append((step, dict(scores)))
        return True

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(**{**record, "reports": [(int(step), scores) for step, scores in record["reports"]]})


def vector(trial: Trial, objectives: Sequence[str]) -> list[float] | None:
    """The last scores in the order of the objectives; None if one is missing or not finite."""
    values = [trial.scores.get(name, math.nan) for name in objectives]
    return values if all(map(math.isfinite, values)) else None


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The finished trials that no other finished one equals or beats in every objective and beats in one."""
    scored = [(trial, found) for trial in trials if trial.status == "finished" and (found := vector(trial, objectives))]
    return [
        trial
        for trial, mine in scored
        if not any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for _, other in scored)
    ]


def best_so_far(trials: Sequence[Trial], objectives: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """The course of a search: time in ms since the epoch, and the best score by then, after each trial that ended."""
    found, best, counts = [], dict.fromkeys(objectives, -math.inf), dict.fromkeys(("finished", "stopped", "failed"), 0)
    for trial in sorted((one for one in trials if one.ended), key=lambda one: (one.ended_ms, one.number)):
        counts[trial.status] += 1
        for name in objectives:
            score = trial.scores.get(name, -math.inf)
            best[name] = max(best[name], score if math.isfinite(score) else -math.inf)
        reached = {f"best/{name}": score for name, score in best.items() if math.isfinite(score)}
        found.append(
            (trial.ended_ms, {**reached, **{f"trials/{name}": float(count) for name, count in counts.items()}})
        )
    return found


def best_first(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The Pareto front first, then the finished, the stopped, the failed; each by the first objective."""
    front = {trial.number for trial in pareto_front(trials, objectives)}
    order: dict[Status, int] = {"finished": 1, "stopped": 2, "running": 3, "failed": 4}

    def place(trial: Trial) -> tuple[int, float, int]:
        score = trial.scores.get(objectives[0], math.nan)
        group = 0 if trial.number in front else order[trial.status]
        return group, -score if math.isfinite(score) else math.inf, trial.number

    return sorted(trials, key=place)


@dataclass(frozen=True)
class TrialReport:
    """Metrics of a trial after `step` steps, by objective; higher is better."""

    step: int
    scores: dict[str, float]


@dataclass(frozen=True)
class TrialEvent:
    """An event of a trial's training, or a report of the trial, with the trial that sent it."""

    number: int  # of the trial
    values: Values  # of the settings that are searched
    message: Event | TrialReport
