"""The command that writes a page of results from MLflow: python -m pipeline.results out=docs"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import UsageError, run_cli
from jobs.errors import UserError
from pipeline.settings.parse import read_config
from pipeline.settings.schema import Config

_HELP = """\
usage: python -m pipeline.results [out=FOLDER] [workspace=DIR] [tracking.uri=URL] [tracking.experiment=NAME]

Reads the finished and evaluated trials of `preset=claim` from MLflow, and writes those of each dataset and number of
steps to FOLDER/results/DATASET-STEPS.csv, with their pictures. What the tables there have of other models on the same
data stays: it may be from other machines. FOLDER/results.md is then written from all tables. Every mean is over seeds,
with its 95 % interval, and every run is named by its id. Searches that are to stay out belong into another
experiment: tracking.experiment=tuning beside preset=claim.

Defaults: out=docs tracking.experiment=claim

exit code: 0 well, 1 failed, 2 a wrong word
"""
_EXPERIMENT = "claim"


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if any(word in ("--help", "-h", "help") for word in words):
        print(_HELP, end="")
        return 0
    own = [word.partition("=")[2] for word in words if word.startswith("out=")]
    others = [word for word in words if not word.startswith("out=")]
    if not any(word.startswith("tracking.experiment=") for word in others):
        others.append(f"tracking.experiment={_EXPERIMENT}")
    try:
        _write(read_config(others), Path(own[-1] if own else "docs"))
    except UsageError as error:
        return _fail(error, 2)
    except (UserError, OSError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _write(config: Config, folder: Path) -> None:
    # Loads MLflow: seconds that a wrong word need not pay.
    from jobs.tracking.client import Tracker
    from jobs.tracking.query import evaluated_trials, picture
    from pipeline.results.page import FIGURES, group_by_experiment, page
    from pipeline.results.table import ExperimentKey, read_tables, write_runs

    if not config.tracking.uri and not (config.workspace / "mlflow.db").exists():
        raise UserError(f"workspace={config.workspace} holds no MLflow database: run preset=claim there first")
    tracker = Tracker(config.tracking, config.workspace)
    tables = folder / "results"
    runs = evaluated_trials(tracker)
    found = group_by_experiment(runs)
    if not found:
        raise UserError(
            f"experiment {config.tracking.experiment} of MLflow at {tracker.uri} has no finished and evaluated trial "
            "that names a preset: run preset=claim first"
        )
    before = read_tables(tables)
    merged = group_by_experiment([*runs, *before])
    pictures = {
        f"{one.name}-{model}-{name}.png": picture(tracker, seeds[min(seeds)].run_id, name)
        for one, models in found.items()
        for model, name in FIGURES
        if (seeds := models.get(model))
    }
    for one in found:
        written = [run for seeds in merged[one].values() for _, run in sorted(seeds.items())]
        write_runs(tables / f"{one.name}.csv", written)
        gone = {run.run_id for run in before if ExperimentKey.of(run) == one} - {run.run_id for run in written}
        left = f"; left out of those before: {len(gone)}, of other data, or of a model that MLflow has" if gone else ""
        print(f"{one.name}: {len(written)} runs{left}")
    for file, content in pictures.items():
        (tables / file).write_bytes(content)
    (folder / "results.md").write_text(page(group_by_experiment(read_tables(tables))))
    print(folder / "results.md")


if __name__ == "__main__":
    run_cli(main)
