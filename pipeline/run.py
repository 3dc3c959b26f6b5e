"""The command: python -m pipeline.run stage=shard,train,evaluate key=value ..."""

import json
import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from jobs.cli import HELP_FLAGS, UsageError, fail, run_cli
from jobs.errors import UserError, os_error_reason
from jobs.storage import open_storage
from jobs.tracking.database import update_artifact_locations
from pipeline.plan import decide, make_plan, missing_data, stage_status
from pipeline.records import EvaluateRecord, TrainRecord
from pipeline.searches import Search
from pipeline.settings.help import help_text
from pipeline.settings.parse import read_config
from pipeline.settings.schema import Config
from pipeline.settings.search_space import resolve_space
from pipeline.terminal import Reporter, start_lines, summary_lines
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.session import RunContext, Session

_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells


def main(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: `key=value` overrides, or `--help` with the names of sections.

    Returns:
        The exit code: 0 success, 1 failure, 2 an invalid argument, 130 interrupted.

    Raises:
        BrokenPipeError: The reader of the output has exited.
    """
    try:
        if HELP_FLAGS & set(arguments):
            sections = [argument for argument in arguments if argument not in HELP_FLAGS and "=" not in argument]
            print(help_text(sections, shutil.get_terminal_size((120, 24)).columns))
            return 0
        config = resolve_space(read_config(arguments))
    except UsageError as error:
        return fail(f"error: {error}", 2)
    # A supervisor, such as Slurm or Kubernetes, stops a command with SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # force= again would discard what this command has completed.
    without = f" without force={','.join(config.force)}" if config.force else ""
    hint = f"Run the command again{without} to continue."
    try:
        _execute(config)
    except UserError as error:
        return fail(f"error: {error}{f' {hint}' if error.retry else ''}", 1)
    except BrokenPipeError:
        raise  # an OSError, but not one of a file
    except OSError as error:
        path = error.filename or config.workspace
        return fail(f"error: {path}: cannot read or write ({os_error_reason(error)}). Fix this. {hint}", 1)
    except KeyboardInterrupt:
        return fail(f"stopped. {hint}", _INTERRUPTED)
    return 0


def _execute(config: Config) -> None:
    """Run or plan a command, and print its result."""
    report = Reporter(json_output=config.output == "json")
    if config.dry_run:
        plan = make_plan(config)
        report.line(f"plan for {config.workspace} (dry run, nothing is written there)")
        for step in plan:
            report.line(f"  {step.stage:<9}{step.action:<8}{'; '.join(filter(None, (step.reason, step.cost)))}")
        result: dict[str, Any] = {"plan": {step.stage: step.action for step in plan}}
    else:
        with report:
            result = run_pipeline(config, report)
            for line in summary_lines(config, result):
                report.line(line)
    if config.output == "json":
        print(json.dumps(result))


def run_pipeline(config: Config, report: Reporter) -> dict[str, Any]:
    """Run every stage that is not complete.

    Args:
        config: Settings of the command.
        report: Terminal.

    Returns:
        `stages` {name: done | skipped | resumed}, and the results of the run: `run_id`, `checkpoint`,
        `weights_sha256`, `model_uri`, `metrics`, each null until a stage has made it. After a search also `search`,
        and `runs` with the results of each run if there are several.

    Raises:
        UserError: A stage cannot run. What is complete is kept.
    """
    command_workspace = Workspace(config)
    command_workspace.create()
    if not config.tracking.uri:
        update_artifact_locations(command_workspace.path, report.line)
    workspaces, search, search_run = [command_workspace], None, ""
    context: RunContext | None = None
    sessions: dict[Workspace, Session] = {}
    outcomes: dict[str, str] = {}
    with ExitStack() as stack:
        for stage in config.stage:
            stage_outcomes = set()
            for workspace in workspaces:
                step = decide(stage, stage_status(workspace, stage), forced=config.force)
                if not outcomes and workspace is command_workspace:
                    for line in start_lines(config):
                        report.line(line)
                report.step(step)
                stage_outcomes.add({"run": "done", "resume": "resumed", "skip": "skipped"}[step.action])
                if step.action == "skip":
                    if stage == "shard" and (note := missing_data(workspace)):
                        report.line(f"{'':<9}note: {note}")
                    continue
                if stage == "shard" and workspace.source is None and not getattr(config.data, "download", False):
                    workspace.open_source(fetch=False)  # raises the error that names the missing files
                # Ray, torch and MLflow take seconds to import; invalid arguments and skipped stages need none of them.
                from pipeline import session, stages

                if context is None:
                    context = session.RunContext(command_workspace, report, stack)
                    if config.storage_path and stage != "evaluate":  # because an evaluation only reads the storage
                        for note in open_storage(config.storage_path).check():
                            report.line(f"{'':<9}note: {note}")
                if workspace not in sessions:
                    sessions[workspace] = session.Session(context, workspace, search_run)
                stages.run_stage(sessions[workspace], stage, forced=stage in config.force)
            outcomes[stage] = next(name for name in ("done", "resumed", "skipped") if name in stage_outcomes)
            if stage == "tune":
                search = Search(command_workspace)
                search_run = search.run_id
                workspaces = [Workspace(chosen) for chosen in search.selected()]
    result: dict[str, Any] = {"stages": outcomes, **run_results(workspaces[0])}
    if search:
        result["search"] = search.summary()
    if len(workspaces) > 1:
        result["runs"] = [run_results(workspace) for workspace in workspaces]
    return result


def run_results(workspace: Workspace) -> dict[str, Any]:
    """Return the run's checkpoint, run_id, weights_sha256, model_uri and metrics, each None where it does not exist."""
    dataset = workspace.dataset()
    run = workspace.run(dataset) if dataset else None
    trained, evaluated = (run.read(TrainRecord), run.read(EvaluateRecord)) if run else (None, None)
    finished = trained or evaluated
    return {
        "checkpoint": str(run.checkpoint(trained.checkpoint)) if run and trained else None,
        "run_id": (finished.run_id or None) if finished else None,
        "weights_sha256": finished.weights_sha256 if finished else None,
        "model_uri": evaluated.model_uri if evaluated else None,
        "metrics": evaluated.metrics if evaluated else None,
    }


if __name__ == "__main__":
    run_cli(main)
