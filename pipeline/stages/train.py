"""The train stage: a run of the loop on the cluster, its curve and its checkpoints to MLflow."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.checkpoints.format import read_history, read_meta
from jobs.checkpoints.manager import Checkpoints, warm_start
from jobs.data.shard_reader import DataAccess
from jobs.errors import AGAIN, CorruptedError, UserError
from jobs.events import TrainingResumed
from jobs.files import write_json
from jobs.tracking.client import TrackingError, TrackingUnavailableError
from jobs.tracking.models import RunProvenance, log_checkpoint
from jobs.tracking.uploader import MetricUploader
from jobs.train import run_training
from jobs.training.state import TrainJob
from pipeline.session import Session
from pipeline.settings.commands import settings_file
from pipeline.settings.schema import Config, run_settings
from pipeline.stages.evaluate import check_evaluation
from pipeline.stages.train_progress import TrainingProgress
from pipeline.workspace import Run

_AWAY_SECONDS = 30.0  # that the end of a training waits for an MLflow that is away


def train(session: Session) -> None:
    """Train the model of these settings, from where an earlier command left it.

    Raises:
        UserError: the user can mend it; the last checkpoint is kept.
    """
    run, report, tracker = session.run, session.report, session.tracker
    if "evaluate" in session.config.stage:
        check_evaluation(session)
    _begin_with_parent(session)
    origin = _origin(session)
    report.progress(f"train    {int(origin.params['capacity.parameters']):,} parameters; starting the workers ...")
    try:
        with tracker.marking_failure(origin.run_id), MetricUploader(tracker, origin.run_id, session.spools) as sender:
            follow = TrainingProgress(sender, report, session.config.train.steps)
            checkpoint = _last_checkpoint(session) or _run_training(session, follow)
            report.progress("train    sending the rest of the curve, and the checkpoints, to MLflow ...")
            try:
                meta = record_training(session, origin, sender, checkpoint)
            except TrackingError as error:
                raise UserError(
                    f"training is finished and nothing is lost, but MLflow at {error.uri} failed: {error.reason}; "
                    f"run {AGAIN} again to send it the rest"
                ) from error
            follow([])  # that MLflow is back, if it is
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    report.done("train", f"step {meta['step']}, checkpoint {checkpoint}")


def _begin_with_parent(session: Session) -> None:
    """Take over the newest checkpoint of the run that `parent` names, unless this one has its own already.

    Raises:
        UserError: it cannot be taken over.
    """
    config, run = session.config, session.run
    if not config.init_from or Checkpoints(run.checkpoint_place).steps():
        return
    parent = session.workspace.other_run(config.init_from)
    if parent.read("run") is None:
        raise UserError(f"init_from={config.init_from} is no run of {parent.folder.parent}: it has the names of all")
    step = warm_start(
        Checkpoints(parent.checkpoint_place),
        Checkpoints(run.checkpoint_place),
        config.init_from,
        run_settings(config),
        session.dataset.fingerprint,
        config.train.steps,
    )
    session.report.line(f"{'':<9}a new run, from step {step} of {config.init_from}")


def _origin(session: Session) -> RunProvenance:
    """The training's MLflow run. A training that was begun goes on while MLflow is away: its sender tells so.

    Raises:
        UserError: a new training has no run.
    """
    try:
        return session.origin
    except TrackingUnavailableError:
        origin = session.resumed_origin()
        if origin is None:
            raise
        return origin


def _last_checkpoint(session: Session) -> Path | None:
    """That of the last step: it is there if training is finished, and MLflow alone may lack something."""
    run = session.run
    try:
        return Checkpoints(run.checkpoint_place).fetch(session.config.train.steps, run.checkpoints)
    except CorruptedError:
        return None


def _run_training(session: Session, follow: TrainingProgress) -> Path:
    """Train; the last checkpoint."""
    config, run = session.config, session.run
    job = train_job(config, session.workspace.access, run)
    step = run_training(job, session.resources, run.scratch, follow)
    return Checkpoints(run.checkpoint_place).fetch(step, run.checkpoints)


def train_job(config: Config, access: DataAccess, run: Run) -> TrainJob:
    """What the workers need to know."""
    return TrainJob(
        model=config.model,
        objective=config.objective,
        progressive=config.progressive,
        train=config.train,
        seed=config.seed,
        data=access,
        checkpoints=run.checkpoint_place,
        settings=run_settings(config),
    )


def record_training(
    session: Session, origin: RunProvenance, sender: MetricUploader, checkpoint: Path, patience: float = _AWAY_SECONDS
) -> dict[str, Any]:
    """Curve, settings and checkpoints of a finished training to MLflow, then the record that it is finished.

    Args:
        session: of the training.
        origin: its run.
        sender: of its curve.
        checkpoint: of its last step.
        patience: how long to bear with an MLflow that takes nothing, s.

    Returns:
        What the last checkpoint says of itself.

    Raises:
        TrackingError: MLflow failed; the same command goes on here.
    """
    run, tracker, meta = session.run, session.tracker, read_meta(checkpoint)
    sender.take(TrainingResumed(meta["step"], read_history(checkpoint)))
    sender.close(patience)
    log_settings(session, origin)
    place = Checkpoints(run.checkpoint_place)
    for step in place.steps():
        with suppress(CorruptedError):
            log_checkpoint(tracker, origin, place.fetch(step, run.checkpoints))
    tracker.end_run(origin.run_id, "FINISHED", {"weights_sha256": meta["weights_sha256"]})
    record = {name: meta[name] for name in ("step", "weights_sha256")}
    write_json(run.folder / "train.json", {"run_id": origin.run_id, "checkpoint": checkpoint.name, **record})
    return meta


def log_settings(session: Session, origin: RunProvenance) -> None:
    """All settings of the training as an artifact, which is a preset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(settings_file(run_settings(session.config)))
        session.tracker.log_file(origin.run_id, path)
