"""The stages. Imported once a stage has to run, because they import Ray, torch and MLflow."""

from collections.abc import Callable
from contextlib import ExitStack, suppress

from ray.exceptions import RayError, RayTaskError

from jobs.checkpoints.manager import CheckpointManager
from jobs.data.manifest import MANIFEST
from jobs.errors import CorruptedError, UserError, first_line
from jobs.files import remove_folder
from pipeline.records import EvaluateRecord
from pipeline.searches import Search
from pipeline.session import Session
from pipeline.settings.schema import Stage
from pipeline.stages.evaluate import evaluate
from pipeline.stages.shard import shard
from pipeline.stages.train import train
from pipeline.stages.tune import tune
from pipeline.workspace import Run


def run_stage(session: Session, stage: Stage, *, forced: bool) -> None:
    """Run a stage to its end, under a lock against other commands.

    Args:
        session: Session of the training.
        stage: Name of the stage.
        forced: Remove what earlier commands left of the stage first.

    Raises:
        UserError: The stage cannot run. What is complete is kept.
        RayTaskError: A task failed by a bug.
    """
    run: dict[Stage, Callable[[Session], None]] = {"shard": shard, "tune": tune, "train": train, "evaluate": evaluate}
    workspace = session.workspace
    with ExitStack() as locks:
        if stage == "shard":
            locks.enter_context(workspace.lock(workspace.data_name))
        else:
            locks.enter_context(workspace.lock(workspace.data_name, shared=True))
            if stage == "train":
                session.lease = locks.enter_context(session.lock_training(session.run))
            else:
                folder = Search(workspace).folder if stage == "tune" else session.run.folder
                locks.enter_context(workspace.lock(folder.name))
        if forced:
            _remove_output(session, stage)
        try:
            run[stage](session)
        except RayTaskError:
            raise  # with its traceback, because it is a bug of this program
        except RayError as error:
            raise UserError(f"Ray failed: {first_line(error)}. Check the cluster.", retry=True) from error


def _remove_output(session: Session, stage: Stage) -> None:
    """Remove what earlier commands left of a stage."""
    workspace = session.workspace
    if stage == "shard":
        if store := workspace.data_storage:
            store.clear(MANIFEST)
    elif stage == "train":
        _remove_run(session.run)
    elif stage == "evaluate":
        (session.run.folder / EvaluateRecord.FILENAME).unlink(missing_ok=True)
    else:
        search = Search(workspace)
        with suppress(CorruptedError):  # then the trainings of its trials stay
            for trial in search.trials:
                with session.lock_training(run := workspace.other_run(trial.run)):
                    _remove_run(run)
        remove_folder(search.folder)


def _remove_run(run: Run) -> None:
    CheckpointManager(run.checkpoint_url).clear()
    remove_folder(run.folder)
