"""The installed command: vlae run|ui|list|presets|submit|results.

Unlike `python -m pipeline.run`, it ignores a `pipeline` or `jobs` package in the current folder.
"""

import os
import shutil
import sqlite3
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from jobs.cli import HELP_FLAGS, UsageError, fail, format_number, parse_overrides, run_cli
from jobs.errors import CorruptedError, UserError
from jobs.evaluation.registry import headline
from jobs.tracking.database import DATABASE, prepare_database
from pipeline.records import EvaluateRecord, RunRecord, TrainRecord
from pipeline.settings.parse import PRESETS, read_config
from pipeline.workspace import Run

_HELP = """\
usage: vlae COMMAND [key=value ...]

  run        write shards, train, evaluate: `python -m pipeline.run`
  ui         start MLflow on workspace=DIR at port=5000
  list       show the trainings of workspace=DIR: folder, state, latents, steps, seed, metrics
  presets    show the presets; `vlae presets NAME` shows the settings of one
  submit     run on a Ray cluster: `python -m jobs.submit`
  results    write a page of results: `python -m pipeline.results`

  vlae --version
  vlae run|submit|results --help
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: 0 success, 1 failure, 2 an invalid argument, 130 interrupted."""
    command, *rest = arguments or ["--help"]
    if command in HELP_FLAGS:
        print(_HELP, end="")
        return 0 if arguments else 2
    if command == "--version":
        print(f"vlae {version('vlae-pipeline')}")
        return 0
    if command not in _COMMANDS:
        return _fail(f"{command}: unknown command. Use one of {', '.join(_COMMANDS)}.")
    if HELP_FLAGS & set(rest) and command in ("ui", "list", "presets"):
        print(_HELP, end="")
        return 0
    return _COMMANDS[command](rest)


def _run(arguments: Sequence[str]) -> int:
    from pipeline.run import main as run

    return run(arguments)


def _submit(arguments: Sequence[str]) -> int:
    from jobs.submit.__main__ import main as submit

    return submit(arguments)


def _results(arguments: Sequence[str]) -> int:
    from pipeline.results.__main__ import main as results

    return results(arguments)


def _presets(arguments: Sequence[str]) -> int:
    """Print the presets with their descriptions, or the file of one preset."""
    files = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if arguments:
        if unknown := [name for name in arguments if name not in files]:
            return _fail(f"{unknown[0]}: unknown preset. `vlae presets` lists them.")
        print("\n".join(files[name].read_text() for name in arguments), end="")
        return 0
    columns = shutil.get_terminal_size().columns
    for name, path in files.items():
        indent = " " * 25
        print(textwrap.fill(f"{name:<24} {_description(path.read_text())}", columns, subsequent_indent=indent))
    return 0


def _description(preset: str) -> str:
    """Return the text between the commands and the hardware in the comments at the top of a preset."""
    comments = [line[2:] for line in preset.partition("# hardware:")[0].splitlines()]
    return " ".join(line for line in comments if not line.startswith(" "))


def _list(arguments: Sequence[str]) -> int:
    """Print a line for each training in the folder `runs/` of a workspace."""
    try:
        overrides = parse_overrides(arguments)
        if set(overrides) - {"workspace"}:
            raise UsageError(f"{next(iter(set(overrides) - {'workspace'}))}: unknown key. Use workspace=DIR only.")
        workspace = read_config(arguments).workspace
    except UsageError as error:
        return _fail(str(error))
    if not workspace.is_dir():
        return _fail(f"workspace={workspace}: not found. Set workspace= to the folder of an earlier command.", 1)
    rows: list[tuple[str, ...]] = [("run", "state", "latents", "steps", "seed", "metrics")]
    for folder in sorted(workspace.glob("runs/*")):
        try:
            rows.append(_row(Run(folder)))
        except CorruptedError as error:
            rows.append((folder.name, f"damaged: {error}", "", "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())
    return 0


def _row(run: Run) -> tuple[str, ...]:
    """Return the cells of a run; CorruptedError if a record is damaged."""
    record, trained, evaluated = run.read(RunRecord), run.read(TrainRecord), run.read(EvaluateRecord)
    settings = record.settings if record else {}
    state = "evaluated" if evaluated else "trained" if trained else "unfinished"
    metrics = headline(evaluated.metrics) if evaluated else {}
    text = ", ".join(f"{name} {format_number(value)}" for name, value in metrics.items())
    keys = ("model.latent_dims", "train.steps", "seed")
    return (run.folder.name, state, *(settings.get(key, "") for key in keys), text)


def _ui(arguments: Sequence[str]) -> int:
    """Print the address of the experiment, and run MLflow on the database of a workspace until Ctrl-C."""
    try:
        overrides = parse_overrides(arguments)
        port = overrides.pop("port", "5000")
        if not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UsageError(f"port={port}: invalid. Use a number from 1 to 65535.")
        config = read_config([f"{key}={value}" for key, value in overrides.items()])
    except UsageError as error:
        return _fail(str(error))
    if config.tracking.uri:
        print(config.tracking.uri)
        return 0
    database = config.workspace / DATABASE
    if not database.exists():
        return _fail(f"{database}: not found. Set workspace= to the folder of an earlier command.", 1)
    try:
        prepare_database(config.workspace, print)
    except UserError as error:
        return _fail(str(error), 1)
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        query = "SELECT experiment_id FROM experiments WHERE name = ?"
        row = connection.execute(query, (config.tracking.experiment,)).fetchone()
    page = f"#/experiments/{row[0]}" if row else ""
    print(f"open http://127.0.0.1:{port}/{page} when MLflow is ready; Ctrl-C stops it", flush=True)
    return _exec_mlflow(port, database)


def _exec_mlflow(port: str, database: Path) -> NoReturn:
    """Replace this process by MLflow's server, so that signals reach it."""
    # Because MLflow would start thirteen processes for jobs that this pipeline does not use.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = ["-m", "mlflow", "ui", "--workers", "1", "--port", port, "--backend-store-uri", f"sqlite:///{database}"]
    os.execve(sys.executable, [sys.executable, *server], env)  # noqa: S606


def _fail(message: str, exit_code: int = 2) -> int:
    return fail(f"error: {message}", exit_code)


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "ui": _ui,
    "list": _list,
    "presets": _presets,
    "submit": _submit,
    "results": _results,
}


def console() -> None:
    """Run `main` on the arguments of the process; the entry point of the installed command `vlae`."""
    run_cli(main)
