"""Checkpoints as LoggedModels of MLflow, each with its step, its metrics and the dataset they were measured on.

The tag `files_sha256` of a LoggedModel holds the sha256 of each of its files, as JSON.
"""

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, LoggedModelOutput, LoggedModelStatus
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from torch import Tensor

from jobs.checkpoints.format import META, WEIGHTS, read_history, read_meta
from jobs.events import MetricPoint
from jobs.files import file_sha256, parse_json_object
from jobs.tracking.client import Tracker
from jobs.tracking.pyfunc import CHECKPOINT, package_model

FILES_TAG = "files_sha256"
CHECKPOINT_FILES = (f"{CHECKPOINT}/{META}", f"{CHECKPOINT}/{WEIGHTS}")  # all that loading a model needs
_MAX_MODEL_BYTES = 100_000_000  # seldom exceeded; a server reads a whole file before it answers
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
    _upload(tracker, provenance, checkpoint, model_id)
    tracker.client.finalize_logged_model(model_id, "READY")
    return model_id


def _upload(tracker: Tracker, provenance: RunProvenance, checkpoint: Path, model_id: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        package_model(checkpoint, folder, provenance.example, model_id, provenance.run_id)
        hashes = {p.relative_to(folder).as_posix(): file_sha256(p) for p in folder.rglob("*") if p.is_file()}
        tracker.log_model(model_id, folder)
    tracker.client.set_logged_model_tags(model_id, {FILES_TAG: json.dumps(hashes, sort_keys=True)})


def repair_model(tracker: Tracker, provenance: RunProvenance, checkpoint: Path, model_id: str) -> list[str]:
    """Upload a LoggedModel anew if a file of MLflow's copy is missing or changed; return the names of such files.

    Args:
        tracker: Client of MLflow.
        provenance: Origin of the checkpoint.
        checkpoint: Folder of the verified checkpoint.
        model_id: Id of the checkpoint's LoggedModel. Its files are downloaded to compare them.

    Returns:
        Names of the files that were missing or changed; empty if the LoggedModel was intact.

    Raises:
        TrackingError: MLflow failed.
    """
    with tracker.errors():
        recorded = recorded_hashes(tracker.client.get_logged_model(model_id).tags)
        checkpoint_hashes = {name: file_sha256(checkpoint / Path(name).name) for name in CHECKPOINT_FILES}
        expected = {"MLmodel": "", **recorded, **checkpoint_hashes}
        with tempfile.TemporaryDirectory() as folder:
            actual = download_files(tracker, model_id, expected, Path(folder))
        damaged = [name for name, digest in expected.items() if not digest == recorded.get(name) == actual.get(name)]
        if damaged:
            _upload(tracker, provenance, checkpoint, model_id)
    return damaged


def recorded_hashes(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the sha256 of each file from the tags of a LoggedModel or a version, empty if there is no valid record."""
    return parse_json_object(tags.get(FILES_TAG, ""))


def download_files(tracker: Tracker, model_id: str, names: Collection[str], folder: Path) -> dict[str, str]:
    """Download the existing files among `names` to `folder`, and return the sha256 of each by name."""
    hashes = {}
    with tracker.errors(), tracker.transfer(_MAX_MODEL_BYTES):
        location = tracker.client.get_logged_model(model_id).artifact_location
        repository: Any = get_artifact_repository(location, tracking_uri=tracker.uri)
        parents = {name.rpartition("/")[0] for name in names}
        infos = [info for parent in parents for info in repository.list_artifacts(parent or None)]
        existing = {info.path for info in infos if not info.is_dir}
        for name in existing.intersection(names):
            hashes[name] = file_sha256(Path(repository.download_artifacts(name, dst_path=str(folder))))
    return hashes
