"""The command: python -m pipeline.run stage=shard,train,evaluate key=value ..."""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from jobs.cli import UsageError, run_cli
from jobs.errors import AGAIN, UserError
from pipeline.dry_run import make_plan
from pipeline.plan import decide
from pipeline.searches import Search, check_space
from pipeline.settings.help import help_text
from pipeline.settings.parse import read_config
from pipeline.settings.schema import Config, Stage
from pipeline.stage_status import find
from pipeline.terminal import Reporter
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.session import Session

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(words: Sequence[str]) -> int:
    """Run a command and return its exit code: 0 well, 1 failed, 2 wrong words, 130 interrupted."""
    if any(word in ("--help", "-h", "help") for word in words):
        print(help_text())
        return 0
    try:
        config = read_config(words)
        check_space(config)
    except UsageError as error:
        return _fail(f"error: {error}", 2)
    # A supervisor's polite stop is handled like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    again = "the same command"
    if config.force:
        again += f" (without force={','.join(config.force)} for what that had begun)"
    code = 1
    try:
        _execute(config)
        code = 0
    except UserError as error:
        _fail(f"error: {str(error).replace(AGAIN, again)}", 1)
    except BrokenPipeError:
        raise  # an OSError of no file of ours
    except OSError as error:
        name = error.filename or config.workspace
        _fail(f"error: {name}: {error.strerror or error}; mend that and run {again} again", 1)
    except KeyboardInterrupt:
        code = _fail(f"stopped; {again} goes on where this one was", _INTERRUPTED)
    return code


def _fail(message: str, code: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code


def _execute(config: Config) -> None:
    report = Reporter(json_output=config.output == "json")
    if config.dry_run:
        plan = make_plan(config)
        report.line(f"plan for {config.workspace} (nothing is done)")
        for step, cost in plan:
            report.line(f"  {step.stage:<9}{step.action:<8}{step.reason}{'; ' if cost else ''}{cost}")
        result: dict[str, Any] = {"plan": {step.stage: step.action for step, _ in plan}}
    else:
        result = run_pipeline(config, report)
    if config.output == "json":
        print(json.dumps(result))


def run_pipeline(config: Config, report: Reporter) -> dict[str, Any]:
    """Run the stages that are not done.

    Returns:
        `stages` {name: done | skipped | resumed}, and of the run: `run_id`, `checkpoint`,
        `weights_sha256`, `model_uri`, `scores` (null where no stage of this or an earlier command made them).

    Raises:
        UserError: something that the user can mend; all that was finished is kept.
    """
    workspaces, search = [Workspace(config)], None
    workspaces[0].make()
    outcome: dict[str, str] = {}
    with ExitStack() as stack:
        stack.callback(report.clear)
        runner = _Runner(report, stack)
        for stage in config.stage:
            outcome[stage] = _together([runner.run(workspace, stage) for workspace in workspaces])
            if stage == "tune":
                search = Search(workspaces[0])
                runner.search_run = search.run_id
                workspaces = [Workspace(chosen) for chosen in search.chosen()]
    found: dict[str, Any] = {"stages": outcome, **results(workspaces[0])}
    if search:
        found["search"] = search.summary()
    if len(workspaces) > 1:
        found["runs"] = [results(workspace) for workspace in workspaces]
    return found


class _Runner:
    """Runs single stages; Ray and MLflow start when the first has to run.

    Args:
        report: where progress goes.
        stack: closes what was opened.
    """

    def __init__(self, report: Reporter, stack: ExitStack) -> None:
        self._report, self._stack = report, stack
        self._session: Session | None = None
        self.search_run = ""  # MLflow's, of the search that trainings come of

    def run(self, workspace: Workspace, stage: Stage) -> str:
        """Run a stage unless it is done; `done`, `resumed` or `skipped`."""
        step = decide(stage, find(workspace, stage), forced=workspace.config.force)
        self._report.step(step)
        if step.action == "skip":
            return "skipped"
        if stage == "shard":
            workspace.require_source()
        # Loads Ray, torch and MLflow: seconds that a wrong word or a skip need not pay.
        from pipeline.session import Session
        from pipeline.stages import run_stage

        if self._session is None:
            self._session = Session(workspace, self._report, self._stack, self.search_run)
        elif self._session.workspace is not workspace:
            self._session = self._session.of(workspace, self.search_run)
        session = self._session
        run_stage(session, stage, anew=stage in workspace.config.force)
        return "resumed" if step.action == "resume" else "done"


def _together(outcomes: Sequence[str]) -> str:
    """What became of a stage that ran for several trainings."""
    return next((word for word in ("done", "resumed") if word in outcomes), "skipped")


def results(workspace: Workspace) -> dict[str, Any]:
    """What the workspace holds of the run that the settings name."""
    dataset = workspace.dataset()
    run = workspace.run(dataset) if dataset else None
    trained = (run.read("train") if run else None) or {}
    scored = (run.read("evaluate") if run else None) or {}
    return {
        "checkpoint": str(run.checkpoint(trained["checkpoint"])) if run and trained else None,
        **{name: trained.get(name, scored.get(name)) for name in ("run_id", "weights_sha256")},
        **{name: scored.get(name) for name in ("model_uri", "scores")},
    }


if __name__ == "__main__":
    run_cli(main)
