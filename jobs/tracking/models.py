"""Checkpoints as LoggedModels of MLflow: each with its step, its scores and the data they are of."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Dataset, LoggedModelOutput, LoggedModelStatus
from torch import Tensor

from jobs.checkpoints.format import read_history, read_meta
from jobs.events import MetricPoint
from jobs.tracking.client import Tracker
from jobs.tracking.pyfunc import package_model

_SCORES = ("validation/", "train/loss")  # what metrics of the curve that tell of the weights begin with


@dataclass(frozen=True)
class RunProvenance:
    """Where a checkpoint comes from."""

    run_id: str  # of the training
    name: str  # of the run, from which its checkpoints have theirs
    params: Mapping[str, str]  # of the run
    dataset: Dataset  # that it was trained on
    example: Tensor  # (n, C, H, W) uint8, a few of its images


def log_checkpoint(tracker: Tracker, origin: RunProvenance, checkpoint: Path) -> str:
    """Keep a checkpoint as a LoggedModel, with the validation scores of its step; once, however often it is asked for.

    Returns:
        The id of the LoggedModel.

    Raises:
        UserError: MLflow does not answer, or the checkpoint is missing or damaged.
    """
    meta = read_meta(checkpoint)
    step, weights = int(meta["step"]), str(meta["weights_sha256"])
    with tracker.errors():
        model_id = _find(tracker, origin.run_id, weights)
        if model_id is None:
            model_id = _create(tracker, origin, checkpoint, step, weights)
        outputs = tracker.client.get_run(origin.run_id).outputs
        linked = [output.model_id for output in outputs.model_outputs] if outputs else []
        if model_id not in linked:  # MLflow takes a link once only
            tracker.client.log_outputs(origin.run_id, [LoggedModelOutput(model_id, step)])
    scores = _scores_of_step(read_history(checkpoint), step)
    tracker.log_points(origin.run_id, tracker.as_known(origin.run_id, scores), model_id, origin.dataset)
    return model_id


def _find(tracker: Tracker, run_id: str, weights_sha256: str) -> str | None:
    """The LoggedModel of these weights of this run; what a kill left unfinished is removed."""
    finished = None
    for found in tracker.client.search_logged_models(
        [tracker.experiment],
        filter_string=f"source_run_id = '{run_id}' AND tags.weights_sha256 = '{weights_sha256}'",
    ):
        if found.status == LoggedModelStatus.READY:
            finished = str(found.model_id)
        else:
            tracker.client.delete_logged_model(found.model_id)
    return finished


def _create(tracker: Tracker, origin: RunProvenance, checkpoint: Path, step: int, weights_sha256: str) -> str:
    client = tracker.client
    model = client.create_logged_model(
        tracker.experiment,
        name=f"{origin.name}-step{step}",
        source_run_id=origin.run_id,
        params={**origin.params, "step": str(step)},
        tags={"weights_sha256": weights_sha256, "step": str(step), "data_fingerprint": str(origin.dataset.digest)},
        model_type="vlae",
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        package_model(checkpoint, folder, origin.example, str(model.model_id), origin.run_id)
        tracker.log_model(str(model.model_id), folder)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _scores_of_step(history: Sequence[MetricPoint], step: int) -> list[MetricPoint]:
    """The points of the curve that are about the weights after `step` steps."""
    kept = []
    for point in history:
        metrics = {name: value for name, value in point.metrics.items() if name.startswith(_SCORES)}
        if point.step == step and metrics:
            kept.append(MetricPoint(step, point.time_ms, metrics))
    return kept
