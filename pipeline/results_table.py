"""Runs as a table in a file: a page of results can be written from it when the machine that trained them is gone."""

import csv
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import UserError
from jobs.tracked_runs import TrackedRun

_PARAMS = ("data", "seed", "train.steps")
_OWN = ("preset", *_PARAMS, "run_id", "data_fingerprint", "command", "search")


def write_runs(path: Path, runs: Sequence[TrackedRun]) -> None:
    """One line for each run: what it is, its MLflow run, its command, then its scores by name."""
    names = sorted({name for run in runs for name in run.scores})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        table = csv.DictWriter(file, [*_OWN, *names], lineterminator="\n")
        table.writeheader()
        for run in runs:
            own = (run.values["preset"], *(run.params[name] for name in _PARAMS))
            told = (run.run_id, run.data_fingerprint, run.command, run.search)
            table.writerow({**dict(zip(_OWN, own + told, strict=True)), **run.scores})
    partial.replace(path)


def read_runs(path: Path) -> list[TrackedRun]:
    """What `write_runs` wrote.

    Raises:
        UserError: the file is no such table.
    """
    try:
        with path.open(newline="") as file:
            return [_run(line) for line in csv.DictReader(file, strict=True)]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no table of runs ({error!r}): remove it and write it anew") from None


def _run(line: dict[str, str]) -> TrackedRun:
    scores = {name: float(text) for name, text in line.items() if name not in _OWN and text}
    params = {name: line[name] for name in _PARAMS}
    int(params["seed"])
    values = {"preset": line["preset"]}
    search, fingerprint = line["search"], line["data_fingerprint"]
    return TrackedRun(line["run_id"], line["command"], search, fingerprint, values, params, scores)
