"""Run the stages. Imported once the settings are valid and something has to run: it loads Ray, torch and MLflow."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ray.exceptions import RayError, RayTaskError

from jobs.checkpoint import kept_checkpoints, read_history, read_meta
from jobs.data.manifest import MANIFEST
from jobs.errors import AGAIN, UserError
from jobs.files import remove_folder, write_json
from jobs.logged import Origin, log_checkpoint
from jobs.loop import TrainJob
from jobs.messages import Started
from jobs.shard import run_sharding
from jobs.train import run_training
from pipeline.config import Stage, run_settings
from pipeline.evaluation import check_evaluation, evaluate
from pipeline.follow import Follower
from pipeline.record import settings_file
from pipeline.session import Session


def run_stage(session: Session, stage: Stage, *, anew: bool) -> None:
    """Run one stage to its end; with `anew` what an earlier command left of it is removed first.

    Raises:
        UserError: the user can mend it; what was finished is kept.
    """
    stages: dict[Stage, Callable[[Session], None]] = {"shard": _shard, "train": _train, "evaluate": evaluate}
    workspace = session.workspace
    with ExitStack() as locks:
        if stage != "shard":
            locks.enter_context(workspace.lock(workspace.data_name, shared=True))
        locks.enter_context(workspace.lock(workspace.data_name if stage == "shard" else session.run.folder.name))
        if anew:
            _forget(session, stage)
        try:
            stages[stage](session)
        except RayTaskError:
            raise  # a mistake of ours: its traceback is wanted
        except RayError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"Ray failed: {reason}; run {AGAIN} again to go on") from error


def _forget(session: Session, stage: Stage) -> None:
    """Remove what an earlier command left of a stage."""
    if stage == "evaluate":
        (session.run.folder / "evaluate.json").unlink(missing_ok=True)
    elif stage == "train":
        remove_folder(session.run.folder)
    elif store := session.workspace.data_store:
        store.clear(MANIFEST)


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


def _train(session: Session) -> None:
    run, report, tracker = session.run, session.report, session.tracker
    if "evaluate" in session.config.stage:
        check_evaluation(session)
    origin = session.origin
    report.progress(f"train    {int(origin.params['capacity.parameters']):,} parameters; starting the workers ...")
    try:
        with tracker.running(origin.run_id):
            checkpoint = _run_training(session, origin)
            meta = read_meta(checkpoint)
            tracker.end_run(origin.run_id, "FINISHED", {"weights_sha256": meta["weights_sha256"]})
            record = {name: meta[name] for name in ("step", "weights_sha256")}
            write_json(run.folder / "train.json", {"run_id": origin.run_id, "checkpoint": checkpoint.name, **record})
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    report.done("train", f"step {meta['step']}, checkpoint {checkpoint}")


def _run_training(session: Session, origin: Origin) -> Path:
    """Train, with the curve, the settings and the checkpoints in MLflow at the end; the last checkpoint."""
    config, tracker = session.config, session.tracker
    job = TrainJob(
        model=config.model,
        objective=config.objective,
        progressive=config.progressive,
        train=config.train,
        seed=config.seed,
        data=session.workspace.access,
        checkpoint_folder=session.run.checkpoints,
    )
    curve = tracker.curve(origin.run_id)
    follow = Follower(curve, session.report, config.train.steps)
    checkpoint = run_training(job, session.resources, session.run.scratch, follow)
    curve.take(Started(read_meta(checkpoint)["step"], read_history(checkpoint)))  # what MLflow may still lack
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.yaml"
        settings.write_text(settings_file(run_settings(config)))
        tracker.log_file(origin.run_id, settings)
    session.report.progress("train    keeping the checkpoints in MLflow ...")
    for kept in kept_checkpoints(session.run.checkpoints):
        log_checkpoint(tracker, origin, kept)
    return checkpoint
