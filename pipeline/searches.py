"""The searches of a workspace: their folders, the records of their trials, their results. Imports no torch."""

from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from jobs.errors import UserError
from jobs.evaluation.registry import required_factors
from jobs.search.trials import Trial, best_first
from pipeline.records import Record, TrackedRecord
from pipeline.settings.schema import Config, defining_settings, format_value, run_settings
from pipeline.settings.search_space import point_config, searched_presets
from pipeline.workspace import Workspace, fingerprint


class SearchRecord(TrackedRecord):
    """search.json: the MLflow run of a search."""

    FILENAME: ClassVar[str] = "search.json"


class TrialsRecord(Record):
    """trials.json: the trials of a search, in the order of their starts."""

    FILENAME: ClassVar[str] = "trials.json"

    trials: list[Trial]


class TuneRecord(Record):
    """tune.json: the end of a search.

    Attributes:
        trials: Setting `tune.trials` of the command that completed it.
        exhausted: Whether the space has no further point.
    """

    FILENAME: ClassVar[str] = "tune.json"

    trials: int
    exhausted: bool


class Search:
    """One search of the workspace, whose name is a hash of the settings that determine its trials.

    Raises:
        UserError: There are no shards.
    """

    def __init__(self, workspace: Workspace) -> None:
        config, dataset = workspace.config, workspace.dataset()
        if dataset is None:
            raise UserError("stage=tune: no shards to train on. Add shard to the stages.")
        fixed = {key: value for key, value in run_settings(config).items() if key not in config.tune.param_space}
        if required_factors(config.tune.objectives):
            fixed["data.factors"] = format_value(config.data.factors)
        presets = [contents] if (contents := searched_presets(config)) else []
        key = fingerprint(fixed, defining_settings(config.tune), *presets, dataset.fingerprint)
        self.config = config
        self.folder = workspace.path / "searches" / f"{config.model.name}-{config.data.name}-{key}"
        self._write_lock = Lock()

    @property
    def record_path(self) -> Path:
        """File of the `SearchRecord`."""
        return self.folder / SearchRecord.FILENAME

    @property
    def scratch(self) -> Path:
        """Folder for Ray's files, which can be deleted after the search."""
        return self.folder / "ray"

    @property
    def log(self) -> Path:
        """File of the lines that commands have printed about the search."""
        return self.folder / "log.txt"

    @property
    def figures(self) -> Path:
        """Folder of the figures of the whole search."""
        return self.folder / "figures"

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials in the order of their starts; CorruptedError if their record is damaged."""
        record = TrialsRecord.read(self.folder / TrialsRecord.FILENAME)
        return record.trials if record else []

    def save(self) -> None:
        """Write the record of the trials, from any thread."""
        with self._write_lock:
            TrialsRecord(trials=self.trials).write(self.folder / TrialsRecord.FILENAME)

    def find_trial(self, number: int) -> Trial | None:
        """Return the trial with a number, or None."""
        return next((trial for trial in self.trials if trial.number == number), None)

    def complete(self, *, exhausted: bool) -> None:
        """Write the record that the search is complete, after its results. `exhausted`: no further point exists."""
        record = TuneRecord(trials=self.config.tune.trials, exhausted=exhausted)
        record.write(self.folder / TuneRecord.FILENAME)

    @property
    def is_complete(self) -> bool:
        """Whether an earlier command completed the search, with at least as many trials as the settings allow."""
        record = TuneRecord.read(self.folder / TuneRecord.FILENAME)
        return record is not None and (record.exhausted or record.trials >= self.config.tune.trials)

    @property
    def run_id(self) -> str:
        """ID of the search's MLflow run, empty if there is none."""
        record = SearchRecord.read(self.record_path)
        return record.tracking.run_id if record and record.tracking else ""

    def summary(self) -> dict[str, Any]:
        """Return the search as in the JSON output of the command: `run_id` of MLflow, and `trials`, best first."""
        names = ("number", "status", "step", "metrics", "values", "run", "reason")
        return {
            "run_id": self.run_id,
            "trials": [{name: getattr(trial, name) for name in names} for trial in self.ranked()],
        }

    def ranked(self) -> list[Trial]:
        """Return the trials, best first."""
        return best_first(self.trials, self.config.tune.objectives)

    def selected(self) -> list[Config]:
        """Return the settings of one or more trainings that `tune.select` names, for the later stages.

        Raises:
            UserError: No trial has metrics.
        """
        finished = [trial for trial in self.trials if trial.status == "finished"]
        if self.config.tune.select == "all" and finished:
            return [point_config(self.config, trial.values) for trial in finished]
        return [self.best()]

    def best(self) -> Config:
        """Return the settings of a whole training at the point of the best trial; UserError if no trial has metrics."""
        for trial in self.ranked()[:1]:
            if trial.status in ("finished", "stopped") and trial.metrics:
                return point_config(self.config, trial.values)
        reasons = dict.fromkeys(trial.reason for trial in self.trials if trial.reason)
        raise UserError(
            f"{self.folder}: no trial of the search has metrics. Fix the reasons of their failures and set "
            f"force=tune{': ' if reasons else ''}{'; '.join(reasons)}"
        )
