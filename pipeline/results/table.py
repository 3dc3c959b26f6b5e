"""Tables of runs in CSV files, from which the results page can be written without the MLflow that logged them."""

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.errors import UserError
from jobs.files import replace_file
from jobs.tracking.query import TrackedRun

_PARAMS = ("data", "seed", "train.steps")
_COLUMNS = ("preset", *_PARAMS, "run_id", "data_fingerprint", "command", "search")  # before those of the metrics
_MACHINE_SETTINGS = ("workspace=", "storage_path=", "tracking.uri=", "ray.address=")


class ExperimentKey(NamedTuple):
    """Dataset and training steps; runs with the same key are compared with each other."""

    data: str
    steps: int

    @property
    def name(self) -> str:
        """Name of the experiment's files, such as `digits-1000`."""
        return f"{self.data}-{self.steps}"

    @classmethod
    def of(cls, run: TrackedRun) -> "ExperimentKey":
        """Return the key of a run with the parameters `data` and `train.steps`."""
        return cls(run.params["data"], int(run.params["train.steps"]))


def write_runs(path: Path, runs: Sequence[TrackedRun]) -> None:
    """Write one row per run, in this order: its parameters, MLflow run and command, then its metrics by name.

    The file is replaced atomically. Settings that name a machine or folder are removed from the commands.
    """
    metrics = sorted({name for run in runs for name in run.metrics})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        rows = io.StringIO(newline="")
        table = csv.DictWriter(rows, [*_COLUMNS, *metrics], lineterminator="\n")
        table.writeheader()
        for run in runs:
            commands = [
                shlex.join(word for word in shlex.split(command) if not word.startswith(_MACHINE_SETTINGS))
                for command in (run.command, run.search)
            ]
            params = (run.params[name] for name in _PARAMS)
            cells = (run.values["preset"], *params, run.run_id, run.data_fingerprint, *commands)
            table.writerow({**dict(zip(_COLUMNS, cells, strict=True)), **run.metrics})
        file.write(rows.getvalue().encode())


def read_tables(folder: Path) -> list[TrackedRun]:
    """Return the runs of all tables in a folder, by file and row; UserError if a file is no table by `write_runs`."""
    runs = []
    for path in sorted(folder.glob("*.csv")):
        try:
            with path.open(newline="") as file:
                rows = [_parse(row, path.stem) for row in csv.DictReader(file, strict=True)]
            if not rows:
                raise ValueError("no rows")
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a table of runs ({error!r}). Rename the file to DATASET-STEPS.csv, or remove it."
            ) from None
        runs += rows
    return runs


def _parse(row: dict[str, str | None], experiment: str) -> TrackedRun:
    cells = {name: text for name in _COLUMNS if (text := row[name]) is not None}
    if len(cells) < len(_COLUMNS):
        raise ValueError("truncated row")
    int(cells["seed"])
    run = TrackedRun(
        run_id=cells["run_id"],
        command=cells["command"],
        search=cells["search"],
        data_fingerprint=cells["data_fingerprint"],
        values={"preset": cells["preset"]},
        params={name: cells[name] for name in _PARAMS},
        metrics={name: float(text) for name, text in row.items() if name not in _COLUMNS and text},
    )
    if ExperimentKey.of(run).name != experiment:
        raise ValueError(f"row of {ExperimentKey.of(run).name}")
    return run
