"""The train stage: the training job on the cluster, with its curve and its checkpoints in MLflow."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from jobs.checkpoints.format import read_history, read_meta
from jobs.checkpoints.manager import CheckpointManager, warm_start
from jobs.cluster.resources import allocate
from jobs.data.shard_reader import DataAccess
from jobs.errors import CorruptedError, UserError
from jobs.events import Event, TrainingResumed
from jobs.tracking.client import TrackingError, TrackingUnavailableError
from jobs.tracking.models import RunProvenance, log_checkpoint
from jobs.tracking.uploader import MetricUploader
from jobs.train import run_training
from jobs.training.state import TrainJob
from pipeline.records import RunRecord, TrainRecord
from pipeline.session import Session
from pipeline.settings.commands import settings_yaml
from pipeline.settings.schema import Config, run_settings
from pipeline.stages.evaluate import check_evaluation
from pipeline.stages.train_progress import TrainingProgress
from pipeline.workspace import Run

_UPLOAD_SECONDS = 30.0  # that a finished training waits for an unavailable MLflow


def train(session: Session) -> None:
    """Train the model of the settings, from where an interrupted command stopped.

    Raises:
        UserError: The training cannot start or has failed. Its last checkpoint is kept.
        TrackingUnavailableError: MLflow is unavailable, and the training has no run there yet.
    """
    run, report, tracker, config = session.run, session.report, session.tracker, session.config
    if "evaluate" in config.stage:
        check_evaluation(session)
    report.log_to(run.log)
    checkpoints = CheckpointManager(run.checkpoint_url, session.owner)
    if config.init_from and not checkpoints.steps():
        _warm_start(session)
    try:
        provenance = session.provenance
    except TrackingUnavailableError:
        # A training that has an MLflow run continues without MLflow, and its curve is sent later.
        resumed = session.resumed_provenance()
        if resumed is None:
            raise
        provenance = resumed
    worker = allocate(config.train, session.resources)
    report.line(
        f"{'':<9}{int(provenance.params['capacity.parameters']):,} parameters; {config.train.num_workers} workers on "
        f"{'GPUs' if worker.num_gpus else 'CPUs'}, {worker.threads} threads each"
    )
    report.progress("train    starting the workers ...")
    try:
        with (
            tracker.marking_failure(provenance.run_id),
            MetricUploader(tracker, provenance.run_id) as uploader,
        ):
            progress = TrainingProgress(uploader, report, config.train.steps)

            def handle(events: list[Event]) -> None:
                if session.lease:
                    session.lease.check()
                progress(events)

            checkpoint: Path | None = None
            with suppress(CorruptedError):  # it exists if the training is complete, and only MLflow lacks something
                checkpoint = checkpoints.load(config.train.steps, run.checkpoints)
            if checkpoint is None:
                job = train_job(config, session.workspace.access, run, session.owner)
                step = run_training(job, session.resources, run.scratch, handle)
                checkpoint = checkpoints.load(step, run.checkpoints)
            # A kill, or a store that was unavailable after the last save, leaves older checkpoints.
            checkpoints.prune(config.train.keep_checkpoints, config.train.steps)
            report.progress("train    uploading the rest of the curve, and the checkpoints, to MLflow ...")
            try:
                record = record_training(session, provenance, uploader, checkpoint)
            except TrackingError as error:
                raise UserError(f"{error} The training is complete and nothing is lost.", retry=error.retry) from error
            progress([])  # reports that MLflow is available again
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    report.done("train", f"step {record.step}, checkpoint {checkpoint}")


def _warm_start(session: Session) -> None:
    config, run = session.config, session.run
    parent = session.workspace.other_run(config.init_from)
    if parent.read(RunRecord) is None:
        raise UserError(f"init_from={config.init_from}: unknown run. Available runs are listed in {run.folder.parent}.")
    step = warm_start(
        CheckpointManager(parent.checkpoint_url),
        CheckpointManager(run.checkpoint_url, session.owner),
        config.init_from,
        run_settings(config),
        session.dataset.fingerprint,
        config.train.steps,
    )
    session.report.line(f"{'':<9}new run, from step {step} of {config.init_from}")


def train_job(config: Config, access: DataAccess, run: Run, owner: str) -> TrainJob:
    """Return what the workers of a training need, a job that can be pickled.

    The workers write checkpoints only while `owner` owns them.
    """
    return TrainJob(
        model=config.model,
        objective=config.objective,
        progressive=config.progressive,
        train=config.train,
        seed=config.seed,
        data=access,
        checkpoints=run.checkpoint_url,
        settings=run_settings(config),
        owner=owner,
    )


def record_training(
    session: Session,
    provenance: RunProvenance,
    uploader: MetricUploader,
    checkpoint: Path,
    timeout: float = _UPLOAD_SECONDS,
) -> TrainRecord:
    """Upload the curve, settings and checkpoints of a finished training to MLflow, then write train.json.

    Args:
        session: Session of the training.
        provenance: Its MLflow run.
        uploader: Uploader of its curve; it is closed.
        checkpoint: Folder of the checkpoint of its last step.
        timeout: Time to wait for an unavailable MLflow, s.

    Returns:
        The record.

    Raises:
        TrackingError: MLflow failed. A repeated call continues.
    """
    run, meta = session.run, read_meta(checkpoint)
    history = read_history(checkpoint)
    uploader.put(TrainingResumed(meta["step"], history.points, history.warnings))
    uploader.close(timeout)
    log_settings(session, provenance)
    checkpoints = CheckpointManager(run.checkpoint_url)
    for step in checkpoints.steps():
        with suppress(CorruptedError):
            log_checkpoint(session.tracker, provenance, checkpoints.load(step, run.checkpoints))
    session.tracker.end_run(provenance.run_id, "FINISHED", {"weights_sha256": meta["weights_sha256"]})
    record = TrainRecord(
        run_id=provenance.run_id,
        checkpoint=checkpoint.name,
        step=meta["step"],
        weights_sha256=meta["weights_sha256"],
    )
    run.write(record)
    return record


def log_settings(session: Session, provenance: RunProvenance) -> None:
    """Upload all settings of a training as the artifact `settings.yaml`, which is a preset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(settings_yaml(run_settings(session.config)))
        session.tracker.log_file(provenance.run_id, path)
