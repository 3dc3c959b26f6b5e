"""The evaluate stage: metrics, figures and the explorer page of a training or a registered model, in MLflow."""

import time
from pathlib import Path

from jobs.checkpoints.format import read_history, read_meta
from jobs.checkpoints.manager import CheckpointManager
from jobs.data.sources.base import identifier_notes
from jobs.errors import UserError
from jobs.evaluate import Evaluation, run_evaluation
from jobs.evaluation.inputs import label_name
from jobs.evaluation.registry import headline, required_factors, required_images, undefined_notes
from jobs.events import MetricPoint
from jobs.tracking.models import log_checkpoint, repair_model
from jobs.tracking.registry import fetch, register
from pipeline.records import EvaluateRecord, TrainRecord
from pipeline.run_page import description
from pipeline.session import Session
from pipeline.settings.commands import evaluation_command, run_name, training_command
from pipeline.settings.schema import format_value, run_settings
from pipeline.terminal import headline_line
from pipeline.workspace import siblings


def check_evaluation(session: Session) -> None:
    """Raise UserError if the dataset lacks a factor or the images that the evaluation needs."""
    config, factors = session.config.evaluate, session.dataset.select_factors(session.config.data.factors)
    label_name(config.label_factor, [factor.name for factor in factors])
    if session.config.model_uri:
        return
    metric = f"evaluate.champion_metric={config.champion_metric}"
    num_varying = sum(len(factor.values) > 1 for factor in factors)
    min_factors = required_factors([config.champion_metric])
    if num_varying < min_factors:
        raise UserError(
            f"{metric}: needs {min_factors} varying factors, and metrics use {num_varying} of this dataset. "
            "Set evaluate.champion_metric=elbo."
        )
    min_images, num_images = required_images([config.champion_metric]), _num_images(session)
    if num_images < min_images:
        raise UserError(
            f"{metric}: needs {min_images} images in the train and in the test split, and the smaller one has "
            f"{num_images} images. Set evaluate.champion_metric=elbo, or use more images."
        )


def evaluate(session: Session) -> None:
    """Evaluate the training of the settings, or the registered model that they name.

    Raises:
        UserError: There is no model, it does not fit the data, or MLflow or Ray failed.
    """
    check_evaluation(session)
    session.report.log_to(session.run.log)
    if session.config.model_uri:
        _evaluate_registered(session)
    else:
        _evaluate_training(session)


def _evaluate_training(session: Session) -> None:
    run, config, tracker = session.run, session.config, session.tracker
    trained = run.read(TrainRecord)
    if trained is None:
        raise UserError(f"{run.folder}: no finished training. Add train to the stages.")
    checkpoint = run.checkpoint(trained.checkpoint)
    if not checkpoint.exists():  # the copy of a checkpoint on S3 was removed
        checkpoint = CheckpointManager(run.checkpoint_url).load(trained.step, run.checkpoints)
    others = siblings(run, run_settings(config), session.dataset.fingerprint)
    provenance = session.provenance  # before the work, so that an unavailable MLflow fails early
    evaluation = _run_evaluation(session, checkpoint, others)

    tracker.complete_curve(
        provenance.run_id, read_history(checkpoint).points
    )  # empty if this MLflow is not the training's
    model_id = log_checkpoint(tracker, provenance, checkpoint)
    if damaged := repair_model(tracker, provenance, checkpoint, model_id):
        session.report.line(f"{'':<9}repaired the model in MLflow: {', '.join(damaged)} missing or changed")
    _log_evaluation(session, provenance.run_id, model_id, trained.step, evaluation)
    command = training_command(config)
    page = description(provenance.run_id, evaluation.metrics, command, _left_out(session))
    tracker.describe(provenance.run_id, page)
    tracker.tag(provenance.run_id, {"command": command})  # the training may have had other evaluate settings
    registered = register(
        tracker,
        provenance.run_id,
        config.evaluate.model_name or config.data.name,
        model_id,
        tags={
            "data_fingerprint": session.dataset.fingerprint,
            "likelihood": config.model.likelihood,
            "weights_sha256": trained.weights_sha256,
            "command": command,
            "evaluate.num_images": str(config.evaluate.num_images),
            "evaluate.seed": str(config.evaluate.seed),
            "data.factors": format_value(config.data.factors) or "all",
        },
        metrics=headline(evaluation.metrics),
        champion_metric=config.evaluate.champion_metric,
        description=page,
    )
    tracker.end_run(provenance.run_id, "FINISHED")
    if provenance.run_id != trained.run_id:
        run.write(trained.model_copy(update={"run_id": provenance.run_id}))
    _record_evaluation(session, evaluation, trained.weights_sha256, registered.uri)
    role = f"is the {registered.alias}" if registered.alias else "is neither champion nor challenger"
    session.report.line(f"{'':<9}{registered.uri} {role} ({registered.note})")


def _evaluate_registered(session: Session) -> None:
    """Evaluate a registered version on any shards, as an MLflow run whose metrics are linked to the version's model."""
    run, config, tracker, version = session.run, session.config, session.tracker, session.version
    evaluated = run.read(EvaluateRecord)
    key = (session.workspace.evaluate_key(), version.weights_sha256)
    if evaluated and (evaluated.key, evaluated.weights_sha256) == key:
        session.report.line(
            f"{'':<9}{config.model_uri} is still {version.uri}, which was evaluated with these settings"
        )
        return
    session.report.progress(f"evaluate fetching {version.uri} ...")
    checkpoint = fetch(tracker, version, run.folder / "model")
    meta = read_meta(checkpoint)
    depth = str(len(meta["model"]["latent_dims"]))
    params = {"model_uri": version.uri, "data": config.data.name, "capacity.depth": depth}
    name = f"{version.uri.removeprefix('models:/').replace('/', '-v')}-on-{config.data.name}"
    command = evaluation_command(config, version.uri)
    run_id = session.start_run(name, params, command, context="evaluation")
    tracker.resume_run(run_id)
    with tracker.marking_failure(run_id):
        evaluation = _run_evaluation(session, checkpoint, [])
        _log_evaluation(session, run_id, version.model_id, int(meta["step"]), evaluation)
        tracker.describe(run_id, description(run_id, evaluation.metrics, command, _left_out(session)))
        tracker.end_run(run_id, "FINISHED")
    _record_evaluation(session, evaluation, version.weights_sha256, version.uri, run_id)
    session.report.line(f"{'':<9}{version.uri} on {config.data.name}")


def _num_images(session: Session) -> int:
    """Return the number of images of the smaller split that the evaluation uses."""
    dataset, num_test = session.dataset, session.config.evaluate.num_images
    return min(dataset.num_samples("train"), dataset.num_samples("test"), num_test)


def _left_out(session: Session) -> list[str]:
    """Return a sentence for each factor that no metric uses, and for the metrics that are not computed."""
    dataset = session.dataset
    notes = identifier_notes(dataset.factors, dataset.total_samples, session.config.data.factors)
    return notes + undefined_notes(_num_images(session))


def _run_evaluation(session: Session, checkpoint: Path, others: list[Path]) -> Evaluation:
    """Return the evaluation of a checkpoint, and keep its figures and its page in the run's folder."""
    run, config = session.run, session.config
    for note in _left_out(session):
        session.report.line(f"{'':<9}note: {note}")
    session.report.progress("evaluate encoding the test images ...")
    evaluation = run_evaluation(
        checkpoint,
        session.workspace.access,
        config.evaluate,
        session.resources,
        use_gpu=config.train.device != "cpu",
        title=f"{session.version.uri} on {config.data.name}" if config.model_uri else run_name(config),
        siblings=others,
        on_progress=lambda done, total: session.report.progress(f"evaluate {done} of {total} tasks done", done, total),
    )
    run.figures.mkdir(parents=True, exist_ok=True)
    for name, png in evaluation.figures.items():
        (run.figures / f"{name}.png").write_bytes(png)
    run.explorer.write_bytes(evaluation.explorer)
    return evaluation


def _log_evaluation(session: Session, run_id: str, model_id: str, step: int, evaluation: Evaluation) -> None:
    """Upload the metrics of a model on this dataset, the figures and the page to an MLflow run."""
    metrics = {f"test/{name}": value for name, value in evaluation.metrics.items()}
    point = MetricPoint(step, time.time_ns() // 1_000_000, metrics)
    refused = session.tracker.log_accepted(run_id, [point], model_id, session.data)
    for name, reason in refused.items():
        session.report.line(f"{'':<9}MLflow refuses the metric {name}, which is left out: {reason}")
    session.tracker.log_folder(run_id, session.run.figures, "figures")
    session.tracker.log_file(run_id, session.run.explorer)


def _record_evaluation(
    session: Session, evaluation: Evaluation, weights_sha256: str, model_uri: str, run_id: str = ""
) -> None:
    """Write evaluate.json, after everything that it refers to, and report the result."""
    run = session.run
    key = session.workspace.evaluate_key()
    run.write(
        EvaluateRecord(
            key=key, weights_sha256=weights_sha256, model_uri=model_uri, metrics=evaluation.metrics, run_id=run_id
        )
    )
    session.report.done("evaluate", headline_line(evaluation.metrics))
    session.report.line(f"{'':<9}figures in {run.figures}; open {run.explorer} to explore the rungs")
