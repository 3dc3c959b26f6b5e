"""What comes out of a search: the table of its trials, the pictures, and what MLflow keeps of both."""

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.search.plots import Drawn, depth_and_capacity, draw_trials, parallel_coordinates
from jobs.search.trials import Trial, pareto_front, vector
from pipeline.run_page import picture
from pipeline.searches import Search, trial_config
from pipeline.session import Session
from pipeline.settings.commands import command_line, search_command
from pipeline.settings.schema import Config
from pipeline.workspace import Workspace


def trial_line(trial: Trial, objectives: Sequence[str]) -> str:
    """`trial 3 finished at step 600: elbo -1234.5; model.latent_dims=4,4,10`."""
    scores = ", ".join(f"{name} {trial.scores[name]:.5g}" for name in objectives if name in trial.scores)
    values = " ".join(f"{key}={_short(value)}" for key, value in trial.values.items())
    outcome = trial.reason or scores or "no score"
    verb = {"stopped": "stopped early", "running": "not ended"}.get(trial.status, trial.status)
    return f"trial {trial.number} {verb} at step {trial.step}: {outcome}; {values}"


def _short(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def conclude(session: Session, search: Search, run_id: str, at_once: int) -> None:
    """Pictures of the trials and of the search, and the table, to MLflow and to the terminal.

    Args:
        session: of the search.
        search: whose trials have all ended.
        run_id: its MLflow run.
        at_once: tasks that draw together.

    Raises:
        UserError: MLflow does not answer.
    """
    _draw_trials(session, search, at_once)
    ranked = search.ranked()
    objectives = search.config.tune.objectives
    search.figures.mkdir(parents=True, exist_ok=True)
    shown = [drawn for trial in ranked if (drawn := _drawn(session, trial, objectives))]
    if shown:
        (search.figures / "parallel_coordinates.png").write_bytes(parallel_coordinates(shown, objectives))
        (search.figures / "depth_and_capacity.png").write_bytes(depth_and_capacity(shown, objectives[0]))
        session.tracker.log_folder(run_id, search.figures, "figures")
    path = search.folder / "trials.csv"
    path.write_text(_table(search.config, ranked))
    session.tracker.log_file(run_id, path)
    session.tracker.describe(run_id, _description(search, ranked, run_id))
    _print(session, search, ranked)


def _draw_trials(session: Session, search: Search, at_once: int) -> None:
    """The pictures of each trial to its run."""
    missing = {trial.number: trial for trial in search.trials if trial.ended and not trial.drawn}
    runs = {number: session.workspace.other_run(trial.run) for number, trial in missing.items()}
    places = {number: run.checkpoint_place for number, run in runs.items()}
    use_gpu = session.resources.num_gpus > 0 and session.config.train.device != "cpu"
    access = session.workspace.access
    for done, (number, figures) in enumerate(draw_trials(places, access, at_once, use_gpu=use_gpu), start=1):
        session.report.progress(f"tune     {done} of {len(missing)} trials drawn")
        run_id = (runs[number].read("run") or {})["tracking"]["run_id"]
        if figures:
            with tempfile.TemporaryDirectory() as folder:
                for name, png in figures.items():
                    (Path(folder) / f"{name}.png").write_bytes(png)
                session.tracker.log_folder(run_id, Path(folder), "figures")
        missing[number].drawn = True
        search.save()


def _drawn(session: Session, trial: Trial, objectives: Sequence[str]) -> Drawn | None:
    """A trial as the pictures show it, if it has all scores."""
    if vector(trial, objectives) is None:
        return None
    config = trial_config(session.config, trial.values)
    parameters = session.of(Workspace(config)).count_parameters(session.dataset.image_shape)
    values = {key: str(value) for key, value in trial.values.items()}
    return Drawn(trial.number, trial.status, len(config.model.latent_dims), parameters, values, trial.scores)


def _table(config: Config, ranked: Sequence[Trial]) -> str:
    """The trials as CSV, best first, each with the command that reproduces it."""
    keys, objectives = list(config.tune.param_space), config.tune.objectives
    front = {trial.number for trial in pareto_front(ranked, objectives)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "status", "pareto_front", "step", *objectives, *keys, "run", "reason", "command"])
    for trial in ranked:
        scores = [trial.scores.get(name, "") for name in objectives]
        values = [trial.values[key] for key in keys]
        about = [trial.number, trial.status, trial.number in front, trial.step]
        command = command_line(trial_config(config, trial.values))
        writer.writerow([*about, *scores, *values, trial.run, trial.reason, command])
    return stream.getvalue()


def _description(search: Search, ranked: Sequence[Trial], run_id: str) -> str:
    """Markdown for the search's page in MLflow."""
    config = search.config
    keys, objectives = list(config.tune.param_space), config.tune.objectives
    front = {trial.number for trial in pareto_front(ranked, objectives)} if len(objectives) > 1 else set()
    rows = []
    for trial in ranked[:100]:
        scores = [f"{trial.scores[name]:.5g}" if name in trial.scores else "" for name in objectives]
        cells = [f"{trial.number}{' *' if trial.number in front else ''}", trial.status, str(trial.step), *scores]
        rows.append("| " + " | ".join([*cells, *(_short(trial.values[key]) for key in keys)]) + " |")
    columns = ["trial", "status", "step", *objectives, *keys]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows, ""]
    if front:
        lines += [
            "\\* on the Pareto front: no other finished trial is as good in every objective and better in one.",
            "",
        ]
    pictures = {"Settings and scores": "parallel_coordinates", "Depth and capacity": "depth_and_capacity"}
    lines += [
        *(f"![{title}]({picture(run_id, name)})" for title, name in pictures.items()),
        "",
        "Scores are of validation images. Each trial is a run below this one; `trials.csv` has the command that "
        "reproduces each, `figures/` the parallel coordinates and depth against capacity.",
        "",
        f"```\n{search_command(config)}\n```",
    ]
    return "\n".join(lines)


def _print(session: Session, search: Search, ranked: Sequence[Trial]) -> None:
    """The table to the terminal."""
    config, report = search.config, session.report
    objectives = config.tune.objectives
    counts = {status: sum(trial.status == status for trial in ranked) for status in ("finished", "stopped", "failed")}
    words = f"{counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed"
    report.done("tune", f"{len(ranked)} trials, {words}; best first:")
    front = pareto_front(ranked, objectives)
    for trial in ranked:
        report.line(f"{'':<9}{trial_line(trial, objectives)}")
        report.line(f"{'':<9}  {command_line(trial_config(config, trial.values))}")
    if len(objectives) > 1:
        report.line(f"{'':<9}Pareto front of {', '.join(objectives)}: trials {_listed(front)}")
    report.line(f"{'':<9}pictures in {search.figures}, table in {search.folder / 'trials.csv'}")


def _listed(trials: Sequence[Trial]) -> str:
    return ", ".join(str(trial.number) for trial in trials) or "none"
