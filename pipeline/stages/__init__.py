"""Run the stages. Imported once the settings are valid and something has to run: it loads Ray, torch and MLflow."""

from collections.abc import Callable
from contextlib import ExitStack, suppress

from ray.exceptions import RayError, RayTaskError

from jobs.checkpoints.manager import Checkpoints
from jobs.data.manifest import MANIFEST
from jobs.errors import AGAIN, CorruptedError, UserError
from jobs.files import remove_folder
from jobs.shard import run_sharding
from pipeline.searches import Search
from pipeline.session import Session
from pipeline.settings.schema import Stage
from pipeline.stages.evaluate import evaluate
from pipeline.stages.train import train
from pipeline.stages.tune import tune
from pipeline.workspace import Run, Workspace


def run_stage(session: Session, stage: Stage, *, anew: bool) -> None:
    """Run one stage to its end; with `anew` what an earlier command left of it is removed first.

    Raises:
        UserError: the user can mend it; what was finished is kept.
    """
    stages: dict[Stage, Callable[[Session], None]]
    stages = {"shard": _shard, "tune": tune, "train": train, "evaluate": evaluate}
    workspace = session.workspace
    with ExitStack() as locks:
        if stage != "shard":
            locks.enter_context(workspace.lock(workspace.data_name, shared=True))
        locks.enter_context(workspace.lock(_place(session, stage)))
        if anew:
            _forget(session, stage)
        try:
            stages[stage](session)
        except RayTaskError:
            raise  # a mistake of ours: its traceback is wanted
        except RayError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"Ray failed: {reason}; run {AGAIN} again to go on") from error


def _place(session: Session, stage: Stage) -> str:
    """Name of the folder that a stage writes in."""
    if stage == "shard":
        return session.workspace.data_name
    return (Search(session.workspace) if stage == "tune" else session.run).folder.name


def _forget(session: Session, stage: Stage) -> None:
    """Remove what an earlier command left of a stage."""
    if stage == "evaluate":
        (session.run.folder / "evaluate.json").unlink(missing_ok=True)
    elif stage == "tune":
        _forget_search(session.workspace)
    elif stage == "train":
        _forget_run(session.run)
    elif store := session.workspace.data_store:
        store.clear(MANIFEST)


def _forget_search(workspace: Workspace) -> None:
    """Remove a search and the trainings of its trials, as far as its record can be read.

    Raises:
        UserError: another command is at work on one of them.
    """
    search = Search(workspace)
    with suppress(CorruptedError):
        for trial in search.trials:
            with workspace.lock(trial.run):
                _forget_run(workspace.other_run(trial.run))
    remove_folder(search.folder)


def _forget_run(run: Run) -> None:
    Checkpoints(run.checkpoint_place).clear()
    remove_folder(run.folder)


def _shard(session: Session) -> None:
    workspace, config, report = session.workspace, session.config, session.report
    source = workspace.fetch_source()
    if "train" in config.stage:
        session.count_parameters(source.image_shape)  # what does not fit is said before the work
    report.progress("shard    checking the source ...")
    for remark in source.check():
        report.line(f"{'':<9}note: {remark}")
    total, url = source.num_samples, workspace.access.url
    manifest = run_sharding(
        source,
        config.data,
        url,
        session.resources,
        lambda done: report.progress(f"shard    {done:,} of {total:,} samples"),
    )
    counts = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in ("train", "validation", "test"))
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    report.done("shard", f"{counts}; {len(manifest.shards)} tars, {size:.0f} MB in {url}")
