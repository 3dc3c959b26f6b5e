"""Checkpoints as LoggedModels of MLflow, each with its step, its metrics and the dataset they were measured on."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Dataset, LoggedModelOutput, LoggedModelStatus
from torch import Tensor

from jobs.checkpoints.format import read_history, read_meta
from jobs.events import MetricPoint
from jobs.tracking.client import Tracker
from jobs.tracking.pyfunc import package_model

_MODEL_METRICS = ("validation/", "train/loss")  # prefixes of the metrics that describe the weights, not the machine


@dataclass(frozen=True)
class RunProvenance:
    """Origin of a checkpoint: its training's run, whose `name` LoggedModels begin with, and its dataset.

    `example` are a few images of the dataset, (n, C, H, W) uint8.
    """

    run_id: str
    name: str
    params: Mapping[str, str]
    dataset: Dataset
    example: Tensor


def log_checkpoint(tracker: Tracker, provenance: RunProvenance, checkpoint: Path) -> str:
    """Log a checkpoint as a LoggedModel with the metrics of its step. Repeated calls log it once.

    Args:
        tracker: Client of MLflow.
        provenance: Origin of the checkpoint.
        checkpoint: Folder of the checkpoint.

    Returns:
        Id of the LoggedModel.

    Raises:
        TrackingError: MLflow failed.
        CorruptedError: The checkpoint is missing or damaged.
    """
    meta = read_meta(checkpoint)
    step, weights, run_id = int(meta["step"]), str(meta["weights_sha256"]), provenance.run_id
    with tracker.errors():
        model_id = _find(tracker, run_id, weights) or _create(tracker, provenance, checkpoint, step, weights)
        outputs = tracker.client.get_run(run_id).outputs
        # Looked up first, because MLflow refuses a second link.
        if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            tracker.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    points = [
        MetricPoint(step, point.time_ms, {name: value})
        for point in read_history(checkpoint).points
        for name, value in point.metrics.items()
        if point.step == step and name.startswith(_MODEL_METRICS)
    ]
    tracker.log_points(run_id, tracker.first_logged(run_id, points), model_id, provenance.dataset)
    return model_id


def _find(tracker: Tracker, run_id: str, weights_sha256: str) -> str | None:
    """Return the LoggedModel of these weights, and delete those that a kill left unfinished."""
    model_id = None
    query = f"source_run_id = '{run_id}' AND tags.weights_sha256 = '{weights_sha256}'"
    for model in tracker.client.search_logged_models([tracker.experiment], filter_string=query):
        if model.status == LoggedModelStatus.READY:
            model_id = str(model.model_id)
        else:
            tracker.client.delete_logged_model(model.model_id)
    return model_id


def _create(tracker: Tracker, provenance: RunProvenance, checkpoint: Path, step: int, weights_sha256: str) -> str:
    model = tracker.client.create_logged_model(
        tracker.experiment,
        name=f"{provenance.name}-step{step}",
        source_run_id=provenance.run_id,
        params={**provenance.params, "step": str(step)},
        tags={
            "weights_sha256": weights_sha256,
            "step": str(step),
            "data_fingerprint": str(provenance.dataset.digest),
        },
        model_type="vlae",
    )
    model_id = str(model.model_id)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        package_model(checkpoint, folder, provenance.example, model_id, provenance.run_id)
        tracker.log_model(model_id, folder)
    tracker.client.finalize_logged_model(model_id, "READY")
    return model_id
