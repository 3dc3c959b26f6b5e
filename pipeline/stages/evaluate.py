"""The evaluate stage: scores, pictures and the explorer of a training or of a registered model, to MLflow."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.checkpoints.format import read_history, read_meta
from jobs.checkpoints.manager import Checkpoints
from jobs.errors import UserError
from jobs.evaluate import Evaluation, run_evaluation
from jobs.evaluation.inputs import label_name
from jobs.events import MetricPoint
from jobs.files import write_json
from jobs.tracking.models import log_checkpoint
from jobs.tracking.registry import Registered, fetch, register
from pipeline.run_page import HEADLINE_METRICS, description
from pipeline.session import Session
from pipeline.settings.commands import command_line, evaluation_command, run_name
from pipeline.settings.schema import run_settings
from pipeline.terminal import score_table
from pipeline.workspace import siblings

# How many factors that vary a score needs.
_FACTORS_NEEDED = {"elbo": 0, "mig": 1, "mig_sup": 2}


def check_evaluation(session: Session) -> None:
    """See that the dataset has the factors that the evaluation asks for.

    Raises:
        UserError: it has not.
    """
    config, factors = session.config.evaluate, session.dataset.factors
    label_name(config.label_factor, [factor.name for factor in factors])
    varying = sum(len(factor.values) > 1 for factor in factors)
    if not session.config.model_uri and varying < _FACTORS_NEEDED[config.champion_metric]:
        raise UserError(
            f"evaluate.champion_metric={config.champion_metric} needs {_FACTORS_NEEDED[config.champion_metric]} factors that vary, and "
            f"this dataset has {varying}: use evaluate.champion_metric=elbo"
        )


def evaluate(session: Session) -> None:
    """Evaluate the training of these settings, or the registered model that they name.

    Raises:
        UserError: there is none, or it does not fit the data, or MLflow or Ray fail.
    """
    check_evaluation(session)
    if session.config.model_uri:
        _evaluate_registered(session)
    else:
        _evaluate_training(session)


def _evaluate_training(session: Session) -> None:
    run = session.run
    trained = run.read("train")
    if trained is None:
        raise UserError(f"{run.folder} holds no finished training: add train to the stages")
    checkpoint = run.checkpoint(trained["checkpoint"])
    if not checkpoint.exists():  # the copy of one that is on S3
        checkpoint = Checkpoints(run.checkpoint_place).fetch(int(trained["step"]), run.checkpoints)
    others = siblings(run, run_settings(session.config), session.dataset.fingerprint)
    origin = session.origin  # MLflow is asked first: what would fail then fails before the work
    evaluation = _scored(session, checkpoint, others)
    registered = _register(session, checkpoint, trained, evaluation)
    if origin.run_id != trained["run_id"]:
        write_json(run.folder / "train.json", {**trained, "run_id": origin.run_id})
    _conclude(session, evaluation, weights_sha256=trained["weights_sha256"], model_uri=registered.uri)
    place = f"is the {registered.alias}" if registered.alias else "is neither champion nor challenger"
    session.report.line(f"{'':<9}{registered.uri} {place} ({registered.note})")


def _scored(session: Session, checkpoint: Path, others: list[Path]) -> Evaluation:
    """Scores and pictures of a checkpoint; the pictures are kept in the run's folder too."""
    run, config = session.run, session.config
    session.report.progress("evaluate encoding the test images ...")
    evaluation = run_evaluation(
        checkpoint,
        session.workspace.access,
        config.evaluate,
        session.resources,
        use_gpu=config.train.device != "cpu",
        title=f"{session.version.uri} on {config.data.name}" if config.model_uri else run_name(config),
        siblings=others,
        on_progress=lambda done, total: session.report.progress(f"evaluate {done} of {total} parts done"),
    )
    run.figures.mkdir(parents=True, exist_ok=True)
    for name, png in evaluation.figures.items():
        (run.figures / f"{name}.png").write_bytes(png)
    run.explorer.write_bytes(evaluation.explorer)
    return evaluation


def _register(session: Session, checkpoint: Path, trained: Mapping[str, Any], evaluation: Evaluation) -> Registered:
    """Scores, pictures and the model; the curve too, if this MLflow has none of this training."""
    config, tracker, origin = session.config, session.tracker, session.origin
    tracker.complete_curve(origin.run_id, read_history(checkpoint))
    model_id = log_checkpoint(tracker, origin, checkpoint)
    _log(session, origin.run_id, model_id, int(trained["step"]), evaluation)
    text = description(origin.run_id, evaluation.scores, command_line(config))
    tracker.describe(origin.run_id, text)
    tracker.tag(origin.run_id, {"command": command_line(config)})  # that of the training may have scored otherwise
    registered = register(
        tracker,
        origin.run_id,
        config.evaluate.model_name or config.data.name,
        model_id,
        tags={
            "data_fingerprint": session.dataset.fingerprint,
            "likelihood": config.model.likelihood,
            "weights_sha256": trained["weights_sha256"],
            "command": command_line(config),
            "evaluate.num_images": str(config.evaluate.num_images),
            "evaluate.seed": str(config.evaluate.seed),
        },
        scores={name: evaluation.scores[name] for name, *_ in HEADLINE_METRICS if name in evaluation.scores},
        champion_metric=config.evaluate.champion_metric,
        description=text,
    )
    tracker.end_run(origin.run_id, "FINISHED")
    return registered


def _log(session: Session, run_id: str, model_id: str, step: int, evaluation: Evaluation) -> None:
    """Scores of the model on this data, pictures and explorer, to a run."""
    scores = {f"test/{name}": value for name, value in evaluation.scores.items()}
    point = MetricPoint(step, time.time_ns() // 1_000_000, scores)
    session.tracker.log_points(run_id, [point], model_id, session.data)
    session.tracker.log_folder(run_id, session.run.figures, "figures")
    session.tracker.log_file(run_id, session.run.explorer)


def _evaluate_registered(session: Session) -> None:
    """Any version on any shards: a run of its own, whose scores are linked to the version's model."""
    run, config, tracker, version = session.run, session.config, session.tracker, session.version
    key, done = session.workspace.evaluate_key(), run.read("evaluate")
    if done and (done["key"], done["weights_sha256"]) == (key, version.weights_sha256):
        session.report.line(
            f"{'':<9}{config.model_uri} is {version.uri} still, which was evaluated with these settings"
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
        evaluation = _scored(session, checkpoint, [])
        _log(session, run_id, version.model_id, int(meta["step"]), evaluation)
        tracker.describe(run_id, description(run_id, evaluation.scores, command))
        tracker.end_run(run_id, "FINISHED")
    _conclude(session, evaluation, run_id=run_id, weights_sha256=version.weights_sha256, model_uri=version.uri)
    session.report.line(f"{'':<9}{version.uri} on {config.data.name}")


def _conclude(session: Session, evaluation: Evaluation, **record: str) -> None:
    """Write the record that the evaluation is done, after all that it speaks of, and say so."""
    run, scores = session.run, evaluation.scores
    key = session.workspace.evaluate_key()
    write_json(run.folder / "evaluate.json", {"key": key, **record, "scores": scores})
    session.report.done("evaluate", score_table(scores))
    session.report.line(f"{'':<9}pictures in {run.figures}; open {run.explorer} to explore the rungs")
