"""MLflow: runs, curves, scores, pictures and the model registry, through explicit client calls."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from jobs.config import TrackingConfig
from jobs.errors import AGAIN, UserError
from jobs.messages import Committed, Message, Point, Started

_EXPERIMENT_KIND = "custom_model_development"  # else the UI takes it for an application of language models
_MOST_METRICS = 1000  # that MLflow takes at once
_BATCH = 50  # points: a few hundred metrics


def tracking_uri(config: TrackingConfig, workspace: Path) -> str:
    """The server's address, or the SQLite file of the workspace."""
    return config.uri or f"sqlite:///{workspace / 'mlflow.db'}"


class Tracker:
    """One MLflow experiment.

    Args:
        config: where MLflow is.
        workspace: folder of the SQLite file and the artifacts, where there is no server.

    Raises:
        UserError: the server or the database does not answer.
    """

    def __init__(self, config: TrackingConfig, workspace: Path) -> None:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # which may be JSON's
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._uri = tracking_uri(config, workspace)
        with self.errors():
            # The registry finds logged models through the global address, whatever the client's is.
            mlflow.set_tracking_uri(self._uri)
            self.client = MlflowClient(self._uri)
            found = self.client.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise UserError(
                    f"tracking.experiment={config.experiment} was deleted in MLflow: restore it there or set another"
                )
            if found is None:
                location = None if config.uri else (workspace / "mlartifacts").as_uri()
                self.experiment = self.client.create_experiment(
                    config.experiment, artifact_location=location, tags={"mlflow.experimentKind": _EXPERIMENT_KIND}
                )
            else:
                self.experiment = found.experiment_id

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what MLflow raises in a `with` block into a UserError."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise UserError(f"MLflow at {self._uri} failed: {reason}; run {AGAIN} again to go on") from error

    def start_run(
        self,
        name: str,
        params: Mapping[str, str],
        dataset: Dataset,
        *,
        key: str,
        tags: Mapping[str, str] | None = None,
        context: str = "training",
    ) -> str:
        """The run with this key, made if there is none; a resumed training goes on in its run.

        Args:
            name: shown in MLflow.
            params: what runs are compared by.
            dataset: what it is trained or evaluated on.
            key: identifies the training; kept as the tag `pipeline.key`.
            tags: more of them.
            context: what the dataset is for, as MLflow shows it.

        Returns:
            The run's id.
        """
        with self.errors():
            found = self.client.search_runs(
                [self.experiment], f"tags.`pipeline.key` = '{key}'", ViewType.ACTIVE_ONLY, max_results=1
            )
            run_id = str(found[0].info.run_id) if found else ""
            if not run_id:
                all_tags = {"pipeline.key": key, "mlflow.source.name": "python -m pipeline.run", **(tags or {})}
                run_id = str(self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id)
            # Said again for a run that is found: a kill may have come before, and equal values are welcome.
            self.client.log_batch(run_id, params=[Param(k, v) for k, v in params.items()])
            if not found or not (found[0].inputs and found[0].inputs.dataset_inputs):
                self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
            return run_id

    def curve(self, run_id: str) -> "CurveWriter":
        """Where a training's messages go."""
        return CurveWriter(self, run_id)

    def last_step(self, run_id: str, metric: str) -> int:
        """The largest step with a point of `metric`; -1 if there is none."""
        with self.errors():
            history = self.client.get_metric_history(run_id, metric)
        return max((point.step for point in history), default=-1)

    def log_points(
        self, run_id: str, points: Sequence[Point], model_id: str | None = None, dataset: Dataset | None = None
    ) -> None:
        """Send points of the curves; with `model_id` and `dataset` they are scores of that model on that data."""
        name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
        with self.errors():
            for start in range(0, len(points), _BATCH):
                metrics = [
                    Metric(key, value, point.time_ms, point.step, model_id, name, digest)
                    for point in points[start : start + _BATCH]
                    for key, value in point.metrics.items()
                ]
                for begin in range(0, len(metrics), _MOST_METRICS):
                    self.client.log_batch(run_id, metrics=metrics[begin : begin + _MOST_METRICS])

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Keep the files of a folder as artifacts under `name`."""
        with self.errors():
            self.client.log_artifacts(run_id, str(folder), name)

    def log_file(self, run_id: str, path: Path) -> None:
        """Keep a file as an artifact."""
        with self.errors():
            self.client.log_artifact(run_id, str(path))

    def describe(self, run_id: str, text: str) -> None:
        """What the run's page begins with, in Markdown."""
        with self.errors():
            self.client.set_tag(run_id, "mlflow.note.content", text)

    def resume_run(self, run_id: str) -> None:
        """Mark a run as RUNNING."""
        with self.errors():
            self.client.update_run(run_id, status="RUNNING")

    @contextmanager
    def running(self, run_id: str) -> Iterator[None]:
        """Mark a run as RUNNING for a `with` block, and as FAILED or KILLED if that raises."""
        self.resume_run(run_id)
        try:
            yield
        except BaseException as error:
            with suppress(UserError):  # the first error is the one to tell
                self.end_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def end_run(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        with self.errors():
            self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in (tags or {}).items()])
            self.client.set_terminated(run_id, status)


class CurveWriter:
    """Sends the points of committed steps only, so that a kill and a resume leave one continuous curve.

    What could not be sent stays, and goes with the next commit.
    """

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id
        self._sent = tracker.last_step(run_id, "train/loss")
        self._pending: list[Point] = []

    def take(self, message: Message) -> None:
        """Handle one message of the training.

        Raises:
            UserError: MLflow does not answer; nothing is lost by it.
        """
        match message:
            case Started():
                # What MLflow has may be less than what was committed: the driver can die in between. The
                # last step goes again, in case a part of it is missing: equal points are one to MLflow.
                self._pending = [point for point in message.history if point.step >= self._sent]
                self._send(message.step)
            case Point():
                if message.step > self._sent:
                    self._pending.append(message)
            case Committed():
                self._send(message.step)

    def _send(self, step: int) -> None:
        ready = [point for point in self._pending if point.step <= step]
        self._tracker.log_points(self._run_id, ready)
        self._pending = [point for point in self._pending if point.step > step]
        self._sent = max([self._sent, *(point.step for point in ready)])
