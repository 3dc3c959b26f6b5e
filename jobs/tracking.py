"""MLflow: runs, curves, scores, pictures and the model registry, through explicit client calls."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The defaults wait four minutes for a server that is away before they say so.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from jobs.board import Committed, Message, Point, Started
from jobs.config import TrackingConfig
from jobs.errors import UserError

CHAMPION = "champion"
_BATCH = 1000  # the most metrics that MLflow takes at once


def tracking_uri(config: TrackingConfig, workspace: Path) -> str:
    """The server's address, or the SQLite file of the workspace."""
    return config.uri or f"sqlite:///{workspace / 'mlflow.db'}"


@dataclass(frozen=True)
class Registered:
    """A model version and whether it now is the champion."""

    uri: str  # models:/NAME/VERSION
    champion: bool
    note: str  # why, in a few words


class Tracker:
    """One MLflow experiment.

    Args:
        config: where MLflow is.
        workspace: folder of the SQLite file and the artifacts, where there is no server.

    Raises:
        UserError: the server or the database does not answer.
    """

    def __init__(self, config: TrackingConfig, workspace: Path) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._uri = tracking_uri(config, workspace)
        with self._errors():
            # The registry finds logged models through the global address, whatever the client's is.
            mlflow.set_tracking_uri(self._uri)
            self._client = MlflowClient(self._uri)
            found = self._client.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise UserError(
                    f"tracking.experiment={config.experiment} was deleted in MLflow: restore it there or set another"
                )
            if found is None:
                location = None if config.uri else (workspace / "mlartifacts").as_uri()
                self._experiment = self._client.create_experiment(config.experiment, artifact_location=location)
            else:
                self._experiment = found.experiment_id

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise UserError(f"MLflow at {self._uri} failed: {reason}; run the same command again to go on") from error

    def start_run(self, name: str, params: Mapping[str, str], dataset: Dataset, *, key: str) -> str:
        """The run with this key, made if there is none; a resumed training goes on in its run.

        Args:
            name: shown in MLflow.
            params: settings in command-line spelling.
            dataset: what it is trained on.
            key: identifies the training; kept as the tag `pipeline.key`.

        Returns:
            The run's id.
        """
        with self._errors():
            found = self._client.search_runs(
                [self._experiment], f"tags.`pipeline.key` = '{key}'", ViewType.ACTIVE_ONLY, max_results=1
            )
            if found:
                run_id = str(found[0].info.run_id)
                self._client.update_run(run_id, status="RUNNING")
                return run_id
            run_id = str(
                self._client.create_run(self._experiment, run_name=name, tags={"pipeline.key": key}).info.run_id
            )
            self._client.log_batch(run_id, params=[Param(k, v) for k, v in params.items()])
            self._client.log_inputs(run_id, [DatasetInput(dataset)])
            return run_id

    def curve(self, run_id: str) -> "CurveWriter":
        """Where a training's messages go."""
        return CurveWriter(self, run_id)

    def last_step(self, run_id: str, metric: str) -> int:
        """The largest step with a point of `metric`; -1 if there is none."""
        with self._errors():
            history = self._client.get_metric_history(run_id, metric)
        return max((point.step for point in history), default=-1)

    def log_points(self, run_id: str, points: Sequence[Point], model_id: str | None = None) -> None:
        """Send points of the curves."""
        metrics = [
            Metric(key, value, point.time_ms, point.step, model_id=model_id)
            for point in points
            for key, value in point.metrics.items()
        ]
        with self._errors():
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Keep the files of a folder as artifacts under `name`."""
        with self._errors():
            self._client.log_artifacts(run_id, str(folder), name)

    def end_run(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        with self._errors():
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in (tags or {}).items()])
            self._client.set_terminated(run_id, status)

    def log_model(self, run_id: str, name: str, folder: Path, params: Mapping[str, str]) -> str:
        """Store a checkpoint as an MLflow LoggedModel and return its id."""
        with self._errors():
            model = self._client.create_logged_model(
                self._experiment, name=name, source_run_id=run_id, params=dict(params), model_type="vlae"
            )
            self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
            return str(model.model_id)

    def register(
        self,
        run_id: str,
        model_id: str,
        name: str,
        tags: Mapping[str, str],
        scores: Mapping[str, float],
        select_by: str,
    ) -> Registered:
        """Add a model version, and make it the champion if it beats the present one on `select_by`.

        Champions are compared on one dataset only: a model scored on other data does not take the alias.
        """
        score = scores.get(select_by)
        if score is None:
            raise UserError(
                f"evaluate.select_by={select_by} is not defined for this dataset (it needs factors): use elbo"
            )
        with self._errors():
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            aliases = self._client.get_registered_model(name).aliases
            held = self._client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None
            version = self._client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags={**tags, **{key: repr(value) for key, value in scores.items() if "/" not in key}},
            ).version
            wins, note = beats(score, select_by, tags, held.tags if held else None)
            if wins:
                self._client.set_registered_model_alias(name, CHAMPION, version)
        return Registered(f"models:/{name}/{version}", wins, note)


def beats(
    score: float, select_by: str, tags: Mapping[str, str], champion: Mapping[str, str] | None
) -> tuple[bool, str]:
    """Whether a model becomes the champion, and why. Tags are those of model versions; higher scores win."""
    if champion is None:
        return True, "the first of its name"
    if champion.get("data_fingerprint") != tags.get("data_fingerprint"):
        return False, "the champion was scored on other data; set evaluate.model_name to register under another name"
    if select_by not in champion:
        return True, f"the champion has no {select_by}"
    if champion.get("weights_sha256") == tags.get("weights_sha256"):
        return True, "the same weights, scored again"
    best = float(champion[select_by])
    return score > best, f"{select_by} {score:.4g}, the champion had {best:.4g}"


class CurveWriter:
    """Sends the points of committed steps only, so that a kill and a resume leave one continuous curve."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id
        self._pending: list[Point] = []

    def take(self, message: Message) -> None:
        """Handle one message of the training."""
        match message:
            case Started():
                # What the store has may be less than what was committed: the driver can die in between.
                sent = self._tracker.last_step(self._run_id, "train/loss") if message.history else -1
                self._pending = [point for point in message.history if point.step > sent]
                self._send(message.step)
            case Point():
                self._pending.append(message)
            case Committed():
                self._send(message.step)

    def _send(self, step: int) -> None:
        ready = [point for point in self._pending if point.step <= step]
        if ready:
            self._tracker.log_points(self._run_id, ready)
        self._pending = [point for point in self._pending if point.step > step]
