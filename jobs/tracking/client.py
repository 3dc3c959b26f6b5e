"""MLflow: runs, curves, scores, pictures and the model registry, through explicit client calls."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from jobs.config import TrackingConfig
from jobs.errors import AGAIN, UnavailableError, UserError
from jobs.events import MetricPoint
from jobs.tracking.spool import missing


class TrackingError(UserError):
    """MLflow did not do what it was asked.

    Attributes:
        uri: where it is.
        reason: what it said.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"MLflow at {uri} failed: {reason}; run {AGAIN} again to go on")
        self.uri, self.reason = uri, reason


class TrackingUnavailableError(TrackingError, UnavailableError):
    """It does not answer, or cannot work now."""


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises in a `with` block into a TrackingError."""
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() >= 500:  # type: ignore[no-untyped-call]
            raise TrackingUnavailableError(uri, _first_line(_root(error))) from error
        raise TrackingError(uri, _first_line(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise TrackingUnavailableError(uri, _first_line(_root(error))) from error


def _root(error: BaseException) -> BaseException:
    """What an error comes from: MLflow wraps those of the network in layers of addresses."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


_EXPERIMENT_KIND = "custom_model_development"  # else the UI takes it for an application of language models
_MOST_METRICS = 1000  # that MLflow takes at once
PARENT_RUN = "mlflow.parentRunId"  # tag by which MLflow shows a run below another
_GONE = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_LAST_SECONDS = 3.0  # that an ending command waits for MLflow to hear of it
_TRANSFER_SECONDS, _BYTES_PER_SECOND = 20, 1_000_000


def tracking_uri(config: TrackingConfig, workspace: Path) -> str:
    """The server's address, or the SQLite file of the workspace."""
    return config.uri or f"sqlite:///{workspace / 'mlflow.db'}"


class Tracker:
    """One MLflow experiment. A server is not asked anything before it has to be.

    Args:
        config: where MLflow is.
        workspace: folder of the SQLite file and the artifacts, where there is no server.

    Raises:
        UserError: the SQLite file cannot be read or made.
    """

    def __init__(self, config: TrackingConfig, workspace: Path) -> None:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # which may be JSON's
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of each call that it tries again
        self.config, self.uri = config, tracking_uri(config, workspace)
        self._artifacts = None if config.uri else (workspace / "mlartifacts").as_uri()
        with self.errors():
            # The registry finds logged models through the global address, whatever the client's is.
            mlflow.set_tracking_uri(self.uri)
            self.client = MlflowClient(self.uri)

    @property
    def home(self) -> dict[str, str]:
        """Where its runs are, in words that stay true when the workspace moves; the settings hold no secrets."""
        return {"uri": self.config.uri, "experiment": self.config.experiment}

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment, made if there is none.

        Raises:
            UserError: it was deleted, or MLflow does not answer.
        """
        name = self.config.experiment
        with self.errors():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                tags = {"mlflow.experimentKind": _EXPERIMENT_KIND}
                return self.client.create_experiment(name, artifact_location=self._artifacts, tags=tags)
        if found.lifecycle_stage == "deleted":
            raise UserError(f"tracking.experiment={name} was deleted in MLflow: restore it there or set another")
        return str(found.experiment_id)

    def errors(self) -> AbstractContextManager[None]:
        """Turns what MLflow raises in a `with` block into a TrackingError."""
        return readable_errors(self.uri)

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
            elif PARENT_RUN in (tags or {}) and PARENT_RUN not in found[0].data.tags:
                self.client.set_tag(run_id, PARENT_RUN, (tags or {})[PARENT_RUN])  # it was trained before the search
            # Said again for a run that is found: a kill may have come before, and equal values are welcome.
            self.client.log_batch(run_id, params=[Param(k, v) for k, v in params.items()])
            if not found or not (found[0].inputs and found[0].inputs.dataset_inputs):
                self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
            return run_id

    def last_steps(self, run_id: str) -> dict[str, int] | None:
        """The last step of each metric of a run, or None if the run was deleted."""
        with self.errors():
            try:
                run = self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == _GONE:
                    return None
                raise
        if run.info.lifecycle_stage == "deleted":
            return None
        return {metric.key: metric.step for metric in run.data.to_proto().metrics}

    def complete_curve(self, run_id: str, history: Sequence[MetricPoint]) -> None:
        """Send what a run lacks of a training's curve."""
        self.log_points(run_id, missing(history, self.last_steps(run_id) or {}))

    def as_known(self, run_id: str, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """Points as the run has them, where it does: if a step was computed again, its first time and value stay."""
        found = []
        for point in points:
            for key, value in point.metrics.items():
                with self.errors():
                    history = self.client.get_metric_history(run_id, key)
                known = [(metric.timestamp, metric.value) for metric in history if metric.step == point.step]
                time_ms, first = known[0] if known else (point.time_ms, value)
                found.append(MetricPoint(point.step, time_ms, {key: first}))
        return found

    def log_points(
        self, run_id: str, points: Sequence[MetricPoint], model_id: str | None = None, dataset: Dataset | None = None
    ) -> None:
        """Send points of the curves; with `model_id` and `dataset` they are scores of that model on that data."""
        name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
        metrics = [
            Metric(key, value, point.time_ms, point.step, model_id, name, digest)
            for point in points
            for key, value in point.metrics.items()
        ]
        with self.errors():
            for start in range(0, len(metrics), _MOST_METRICS):
                self.client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self.errors():
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    @contextmanager
    def transfer(self, num_bytes: int) -> Iterator[None]:
        """Wait longer for answers in a `with` block: a server that passes artifacts on gives them when it has done so.

        At a megabyte per second it is in time.
        """
        name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
        usual = os.environ[name]
        os.environ[name] = str(max(int(usual), _TRANSFER_SECONDS + num_bytes // _BYTES_PER_SECOND))
        try:
            yield
        finally:
            os.environ[name] = usual

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Keep the files of a folder as artifacts under `name`."""
        with self.errors(), self.transfer(_largest(folder)):
            self.client.log_artifacts(run_id, str(folder), name)

    def log_file(self, run_id: str, path: Path) -> None:
        """Keep a file as an artifact."""
        with self.errors(), self.transfer(path.stat().st_size):
            self.client.log_artifact(run_id, str(path))

    def log_model(self, model_id: str, folder: Path) -> None:
        """Keep the files of a folder as those of a LoggedModel."""
        with self.errors(), self.transfer(_largest(folder)):
            self.client.log_model_artifacts(model_id, str(folder))

    def describe(self, run_id: str, text: str) -> None:
        """What the run's page begins with, in Markdown."""
        self.tag(run_id, {"mlflow.note.content": text})

    def resume_run(self, run_id: str) -> None:
        """Mark a run as RUNNING."""
        with self.errors():
            self.client.update_run(run_id, status="RUNNING")

    @contextmanager
    def marking_failure(self, run_id: str) -> Iterator[None]:
        """Mark a run as FAILED or KILLED if the `with` block raises, and if MLflow answers."""
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            last = threading.Thread(target=self._try_to_end, args=(run_id, status), daemon=True)
            last.start()
            last.join(_LAST_SECONDS)
            raise

    def _try_to_end(self, run_id: str, status: str) -> None:
        with suppress(TrackingError):  # there is another error to tell
            self.end_run(run_id, status)

    def end_run(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self.tag(run_id, tags or {})
        with self.errors():
            self.client.set_terminated(run_id, status)


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder; each is sent by itself."""
    return max((path.stat().st_size for path in folder.rglob("*")), default=0)
