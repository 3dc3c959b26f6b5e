"""Report a search: the table of its trials and the figures, on the terminal and in MLflow."""

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.search.plots import TrialModel, depth_and_capacity, draw_trials, parallel_coordinates
from jobs.search.trials import Trial, pareto_front
from pipeline.records import RunRecord
from pipeline.run_page import picture
from pipeline.searches import Search
from pipeline.session import Session
from pipeline.settings.commands import search_command, training_command
from pipeline.settings.search_space import trial_config
from pipeline.workspace import Workspace

_MAX_ROWS = 100  # of the table on the page in MLflow


def trial_line(trial: Trial, objectives: Sequence[str]) -> str:
    """Return a trial as one line: status, step, these metrics or the reason, and values.

    Example:
        >>> trial = Trial(3, {"model.latent_dims": "4,4,10"}, "finished", reports=[(600, {"elbo": -1234.5})])
        >>> trial_line(trial, ["elbo"])
        'trial 3 finished at step 600: elbo -1234.5; model.latent_dims=4,4,10'
    """
    metrics = ", ".join(f"{name} {trial.metrics[name]:.5g}" for name in objectives if name in trial.metrics)
    values = " ".join(f"{key}={_format_value(value)}" for key, value in trial.values.items())
    verb = {"stopped": "stopped early", "running": "unfinished"}.get(trial.status, trial.status)
    return f"trial {trial.number} {verb} at step {trial.step}: {trial.reason or metrics or 'no metrics'}; {values}"


def _format_value(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report_search(session: Session, search: Search, run_id: str, max_concurrent: int) -> None:
    """Write the figures and the table of a search whose trials are done, upload them to MLflow, and print the table.

    Args:
        session: Session with the settings of the search.
        search: The search, whose trials are all done.
        run_id: ID of its MLflow run.
        max_concurrent: Maximum number of concurrent tasks that draw figures.

    Raises:
        UserError: MLflow failed.
    """
    _upload_figures(session, search, max_concurrent)
    config, ranked = search.config, search.ranked()
    objectives = config.tune.objectives
    models = []
    for trial in ranked:
        if trial.status in ("finished", "stopped") and trial.objective_values(objectives):
            settings = trial_config(config, trial.values)
            parameters = Session(session.context, Workspace(settings)).count_parameters(session.dataset.image_shape)
            models.append(TrialModel(trial, len(settings.model.latent_dims), parameters))
    if models:
        search.figures.mkdir(parents=True, exist_ok=True)
        parallel = parallel_coordinates([model.trial for model in models], config.tune.param_space, objectives)
        (search.figures / "parallel_coordinates.png").write_bytes(parallel)
        (search.figures / "depth_and_capacity.png").write_bytes(depth_and_capacity(models, objectives[0]))
        session.tracker.log_folder(run_id, search.figures, "figures")
    table = search.folder / "trials.csv"
    table.write_text(_format_csv(search, ranked))
    session.tracker.log_file(run_id, table)
    session.tracker.describe(run_id, _format_page(search, ranked, run_id))

    report = session.report
    counts = {status: sum(trial.status == status for trial in ranked) for status in ("finished", "stopped", "failed")}
    text = f"{counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed"
    report.done("tune", f"{len(ranked)} trials, {text}; best first:")
    for trial in ranked:
        report.line(f"{'':<9}{trial_line(trial, objectives)}")
        report.line(f"{'':<9}  {training_command(trial_config(config, trial.values))}")
    if len(objectives) > 1:
        front = ", ".join(str(trial.number) for trial in pareto_front(ranked, objectives)) or "none"
        report.line(f"{'':<9}Pareto front of {', '.join(objectives)}: trials {front}")
    report.line(f"{'':<9}figures in {search.figures}, table in {table}")


def _upload_figures(session: Session, search: Search, max_concurrent: int) -> None:
    """Draw the figures of each trial and upload them to its MLflow run."""
    missing = {trial.number: trial for trial in search.trials if trial.is_done and not trial.plotted}
    runs = {number: session.workspace.other_run(trial.run) for number, trial in missing.items()}
    checkpoints = {number: run.checkpoint_url for number, run in runs.items()}
    use_gpu = session.resources.num_gpus > 0 and session.config.train.device != "cpu"
    drawn = draw_trials(checkpoints, session.workspace.access, max_concurrent, use_gpu=use_gpu)
    for count, (number, figures) in enumerate(drawn, start=1):
        session.report.progress(f"tune     figures of {count} of {len(missing)} trials")
        record = runs[number].read(RunRecord)
        if figures and record and record.tracking:
            with tempfile.TemporaryDirectory() as folder:
                for name, png in figures.items():
                    (Path(folder) / f"{name}.png").write_bytes(png)
                session.tracker.log_folder(record.tracking.run_id, Path(folder), "figures")
        missing[number].plotted = True
        search.save()


def _format_csv(search: Search, ranked: Sequence[Trial]) -> str:
    """Return the trials as CSV, best first, each with the command that reproduces it."""
    config = search.config
    keys, objectives = list(config.tune.param_space), config.tune.objectives
    front = {trial.number for trial in pareto_front(ranked, objectives)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "status", "pareto_front", "step", *objectives, *keys, "run", "reason", "command"])
    for trial in ranked:
        metrics = [trial.metrics.get(name, "") for name in objectives]
        values = [trial.values[key] for key in keys]
        row = [
            trial.number,
            trial.status,
            trial.number in front,
            trial.step,
            *metrics,
            *values,
            trial.run,
            trial.reason,
        ]
        writer.writerow([*row, training_command(trial_config(config, trial.values))])
    return stream.getvalue()


def _format_page(search: Search, ranked: Sequence[Trial], run_id: str) -> str:
    """Return the Markdown of the search's page in MLflow."""
    config = search.config
    keys, objectives = list(config.tune.param_space), config.tune.objectives
    front = {trial.number for trial in pareto_front(ranked, objectives)} if len(objectives) > 1 else set()
    columns = ["trial", "status", "step", *objectives, *keys]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for trial in ranked[:_MAX_ROWS]:
        metrics = [f"{trial.metrics[name]:.5g}" if name in trial.metrics else "" for name in objectives]
        cells = [f"{trial.number}{' *' if trial.number in front else ''}", trial.status, str(trial.step), *metrics]
        lines.append("| " + " | ".join([*cells, *(_format_value(trial.values[key]) for key in keys)]) + " |")
    if front:
        lines += [
            "",
            "\\* on the Pareto front: no other finished trial is as good in every objective and better in one.",
        ]
    figures = {"Settings and metrics": "parallel_coordinates", "Depth and capacity": "depth_and_capacity"}
    lines += [
        "",
        *(f"![{title}]({picture(run_id, name)})" for title, name in figures.items()),
        "",
        "Metrics are computed on validation images. Each trial is a run below this one. `trials.csv` holds the command "
        "that reproduces each trial. `figures/` holds the parallel coordinates, and depth against capacity.",
        "",
        f"```\n{search_command(config)}\n```",
    ]
    return "\n".join(lines)
