"""Runs as a table in a file: a page of results can be written from it when the machine that trained them is gone."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.errors import UserError
from jobs.tracking.query import TrackedRun

_PARAMS = ("data", "seed", "train.steps")
_OWN = ("preset", *_PARAMS, "run_id", "data_fingerprint", "command", "search")
_PLACES = ("workspace=", "storage_path=", "tracking.uri=", "ray.address=")


class ExperimentKey(NamedTuple):
    """What runs have in common that are held against each other."""

    data: str
    steps: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data}-{self.steps}"

    @classmethod
    def of(cls, run: TrackedRun) -> "ExperimentKey":
        """The one that a run belongs to."""
        return cls(run.params["data"], int(run.params["train.steps"]))


def write_runs(path: Path, runs: Sequence[TrackedRun]) -> None:
    """One line for each run: what it is, its MLflow run, its command, then its scores by name.

    Commands lose the places that they happened to work in.
    """
    names = sorted({name for run in runs for name in run.scores})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        table = csv.DictWriter(file, [*_OWN, *names], lineterminator="\n")
        table.writeheader()
        for run in runs:
            own = (run.values["preset"], *(run.params[name] for name in _PARAMS))
            told = (run.run_id, run.data_fingerprint, _anywhere(run.command), _anywhere(run.search))
            table.writerow({**dict(zip(_OWN, own + told, strict=True)), **run.scores})
    partial.replace(path)


def read_tables(folder: Path) -> list[TrackedRun]:
    """The runs of all tables in a folder.

    Raises:
        UserError: one is no such table.
    """
    return [run for path in sorted(folder.glob("*.csv")) for run in _read(path)]


def _read(path: Path) -> list[TrackedRun]:
    """What `write_runs` wrote, of the comparison that the file is named after."""
    try:
        with path.open(newline="") as file:
            runs = [_run(line, path.stem) for line in csv.DictReader(file, strict=True)]
        if not runs:
            raise ValueError("no runs")
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no table of runs ({error!r}): rename it if it is of other steps, or remove it"
        ) from None
    return runs


def _run(line: dict[str, str | None], table: str) -> TrackedRun:
    own = {name: line[name] for name in _OWN}
    known = {name: text for name, text in own.items() if text is not None}
    if len(known) < len(_OWN):
        raise ValueError("a line that is cut short")
    int(known["seed"])
    run = TrackedRun(
        run_id=known["run_id"],
        command=known["command"],
        search=known["search"],
        data_fingerprint=known["data_fingerprint"],
        values={"preset": known["preset"]},
        params={name: known[name] for name in _PARAMS},
        scores={name: float(text) for name, text in line.items() if name not in _OWN and text},
    )
    if ExperimentKey.of(run).name != table:
        raise ValueError(f"a line of {ExperimentKey.of(run).name} in the table of {table}")
    return run


def _anywhere(command: str) -> str:
    return shlex.join(word for word in shlex.split(command) if not word.startswith(_PLACES))
