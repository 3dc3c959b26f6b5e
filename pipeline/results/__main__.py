"""Write a page of results from MLflow: python -m pipeline.results out=docs."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jobs.cli import HELP_FLAGS, UsageError, fail, parse_overrides, run_cli
from jobs.errors import UserError
from pipeline.settings.parse import read_config
from pipeline.settings.schema import Config

_HELP = """\
usage: python -m pipeline.results [out=FOLDER] [workspace=DIR] [tracking.uri=URL] [tracking.experiment=NAME]

Reads the finished and evaluated trials of `preset=claim` from MLflow and writes one table for each dataset and number
of steps to FOLDER/results/DATASET-STEPS.csv, with figures. Rows of other models on the same data stay in the table,
because they may come from other machines. FOLDER/results.md is then written from all tables. Every mean is over seeds
and has its 95 % interval, and every run is listed with its id. To leave a search out, log it to another experiment:
tracking.experiment=tuning beside preset=claim.

Defaults: out=docs tracking.experiment=claim

exit code: 0 success, 1 failure, 2 invalid argument
"""
_EXPERIMENT = "claim"


def main(arguments: Sequence[str]) -> int:
    """Run the command with `key=value` arguments, and return its exit code."""
    if HELP_FLAGS & set(arguments):
        print(_HELP, end="")
        return 0
    try:
        overrides = {"tracking.experiment": _EXPERIMENT, **parse_overrides(arguments)}
        out = Path(overrides.pop("out", "docs"))
        _write(read_config([f"{key}={value}" for key, value in overrides.items()]), out)
    except (UsageError, UserError, OSError) as error:
        hint = " Run the command again to retry." if isinstance(error, UserError) and error.retry else ""
        return fail(f"error: {error}{hint}", 2 if isinstance(error, UsageError) else 1)
    return 0


def _write(config: Config, out: Path) -> None:
    # Imported late, because MLflow takes seconds that an invalid argument need not wait for.
    from jobs.tracking.client import Tracker
    from jobs.tracking.database import DATABASE
    from jobs.tracking.query import evaluated_trials, picture
    from pipeline.results.page import FIGURES, group_by_experiment, page
    from pipeline.results.table import ExperimentKey, read_tables, write_runs

    if not config.tracking.uri and not (config.workspace / DATABASE).exists():
        raise UserError(f"workspace={config.workspace}: no MLflow database. Run preset=claim in this workspace first.")
    tracker = Tracker(config.tracking, config.workspace, partial(print, file=sys.stderr))
    tables = out / "results"
    runs = evaluated_trials(tracker)
    experiments = group_by_experiment(runs)
    if not experiments:
        raise UserError(
            f"tracking.experiment={config.tracking.experiment}: no finished and evaluated trial with a claim preset "
            f"in MLflow at {tracker.uri}. Run preset=claim first."
        )
    previous = read_tables(tables)
    merged = group_by_experiment([*runs, *previous])
    figures = {
        f"{experiment.name}-{model}-{name}.png": picture(tracker, seeds[min(seeds)].run_id, name)
        for experiment, models in experiments.items()
        for model, name in FIGURES
        if (seeds := models.get(model))
    }
    for experiment in experiments:
        rows = [run for seeds in merged[experiment].values() for _, run in sorted(seeds.items())]
        write_runs(tables / f"{experiment.name}.csv", rows)
        replaced = {run.run_id for run in previous if ExperimentKey.of(run) == experiment} - {
            run.run_id for run in rows
        }
        dropped = (
            f"; {len(replaced)} previous rows dropped (other data, or a model that MLflow has)" if replaced else ""
        )
        print(f"{experiment.name}: {len(rows)} runs{dropped}")
    for name, content in figures.items():
        (tables / name).write_bytes(content)
    (out / "results.md").write_text(page(group_by_experiment(read_tables(tables))))
    print(out / "results.md")


if __name__ == "__main__":
    run_cli(main)
