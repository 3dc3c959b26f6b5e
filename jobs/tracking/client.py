"""MLflow client: runs, learning curves, metrics, artifacts and tags, through explicit calls."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from jobs.cli import defer_signals
from jobs.config import TrackingConfig
from jobs.errors import UnavailableError, UserError, first_line
from jobs.events import MetricPoint
from jobs.http_limits import operation
from jobs.tracking.database import DATABASE, prepare_database

PARENT_RUN = "mlflow.parentRunId"  # tag by which MLflow nests a run below another
_ALREADY_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)
_NOT_FOUND = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_EXPERIMENT_KIND = "custom_model_development"  # because the UI otherwise shows the pages of a language model
_METRICS_PER_CALL = 1000  # MLflow's limit of `log_batch`
_MAX_RESPONSE_BYTES, _MAX_SECONDS = 2**28, 3600.0  # of calls to a server, such as those that send a learning curve
_MARK_SECONDS = 3.0  # how long a failing command waits for MLflow to record the failure
_TRANSIENT = (408, 409, 429)  # statuses of errors that may pass, besides 5xx
_CONFLICT = re.compile("IntegrityError|UniqueViolation|Model Version creation error")  # of two writers
_FIX = "Check tracking.uri and the server"
_FIXES = {
    400: "Change the value that MLflow names",
    401: "Check the credentials for MLflow",
    403: "Check the credentials and permissions for MLflow",
}
_TRANSFER_SECONDS, _BYTES_PER_SECOND = 20, 1_000_000  # a request with a file: fixed time, slowest connection


class TrackingError(UserError):
    """MLflow refused a call, and would refuse the same call again.

    Attributes:
        uri: Address of MLflow.
        reason: Answer of MLflow or error of the network.
        status: HTTP status of the answer: 400 for a value that MLflow does not accept.
    """

    def __init__(self, uri: str, reason: str, status: int) -> None:
        message = f"MLflow at {uri} refused a call: {reason.rstrip('.')}. {_FIXES.get(status, _FIX)}."
        super().__init__(f"MLflow at {uri} failed: {reason}. {_FIX}." if self.retry else message)
        self.uri, self.reason, self.status = uri, reason, status


class TrackingUnavailableError(TrackingError, UnavailableError):
    """MLflow does not answer, or answers with an error that may pass."""

    retry = True  # because every call continues where the failed one stopped


def missing_points(points: Iterable[MetricPoint], last_steps: Mapping[str, int]) -> list[MetricPoint]:
    """Return the part of a learning curve beyond MLflow's last step of each metric; all steps of a metric without one.

    Points keep only their missing metrics; points without any are left out.

    Example:
        >>> missing_points([MetricPoint(2, 0, {"a": 1.0, "b": 2.0})], {"a": 2})
        [MetricPoint(step=2, time_ms=0, metrics={'b': 2.0})]
    """
    rest = []
    for point in points:
        metrics = {key: value for key, value in point.metrics.items() if point.step > last_steps.get(key, -1)}
        if metrics:
            rest.append(MetricPoint(point.step, point.time_ms, metrics))
    return rest


def last_steps(run: Run) -> dict[str, int]:
    """Return the last step of each metric of a run."""
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


@contextmanager
def accept_existing() -> Iterator[None]:
    """Suppress MLflow's error in a `with` block that another command has created the same entity meanwhile.

    Yields:
        Nothing.

    Raises:
        MlflowException: MLflow refused for another reason.
    """
    try:
        yield
    except MlflowException as error:
        if error.error_code != _ALREADY_EXISTS:
            raise


class Tracker:
    """Client of one MLflow experiment, thread-safe. Its methods raise TrackingError where MLflow fails.

    A server is first contacted when a call needs it.

    Args:
        config: Address of MLflow and name of the experiment.
        workspace: Folder of the SQLite file and the artifacts if there is no server.
        notify: Called with a line for the user about the preparation of the SQLite file.

    Raises:
        UserError: The SQLite file cannot be read or created.
    """

    def __init__(self, config: TrackingConfig, workspace: Path, notify: Callable[[str], None] = lambda _: None) -> None:
        # Because standard output may be the JSON of output=json.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # because urllib3 warns of every retry
        self.config, self.uri = config, config.uri or f"sqlite:///{workspace / DATABASE}"
        self._artifacts = None if config.uri else prepare_database(workspace, notify)
        # Deferred, because a signal that Python handles in a destructor of SQLAlchemy would be lost.
        with defer_signals(), self.errors():
            # Because MLflow finds logged models through the global addresses, whatever the client's are.
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            self.client = MlflowClient(self.uri, self.uri)

    @property
    def location(self) -> dict[str, str]:
        """Settings that name the experiment. They hold no secrets and stay valid when the workspace moves."""
        return {"uri": self.config.uri, "experiment": self.config.experiment}

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment, which is created if it does not exist.

        Raises:
            UserError: The experiment was deleted, or MLflow failed.
        """
        name = self.config.experiment
        with self.errors():
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                tags = {"mlflow.experimentKind": _EXPERIMENT_KIND}
                with accept_existing():
                    return self.client.create_experiment(name, artifact_location=self._artifacts, tags=tags)
                experiment = self.client.get_experiment_by_name(name)
        if experiment.lifecycle_stage == "deleted":
            raise UserError(f"tracking.experiment={name}: deleted in MLflow. Restore it there, or set another name.")
        return str(experiment.experiment_id)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the errors of MLflow's client in a `with` block as TrackingError.

        Raises:
            TrackingUnavailableError: The server or the database does not answer, or its error may pass.
            TrackingError: MLflow refused the call.
        """
        try:
            if self.config.uri.startswith("http"):
                with operation(f"MLflow at {self.uri}", _MAX_RESPONSE_BYTES, _MAX_SECONDS):
                    yield
            else:
                yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            status = _http_status(error)
            if status in _TRANSIENT or status >= 500:
                raise TrackingUnavailableError(self.uri, first_line(_root_cause(error)), status) from error
            raise TrackingError(self.uri, first_line(error), status) from error

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
        """Return the id of the run with this key, which is created if it does not exist.

        A resumed training therefore continues in its run, also after a kill between any two calls.

        Args:
            name: Name that MLflow shows.
            params: Parameters by which runs are compared.
            dataset: Dataset of the training or evaluation.
            key: Identifies the run; kept as the tag `pipeline.key`.
            tags: More tags of a new run.
            context: Purpose of the dataset, as MLflow shows it.

        Returns:
            Id of the run.

        Raises:
            UserError: The experiment was deleted, or MLflow failed.
        """
        tags = tags or {}
        with self.errors():
            query = f"tags.`pipeline.key` = '{key}'"
            runs = self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY, max_results=1)
            if runs:
                run = runs[0]
                if PARENT_RUN in tags and PARENT_RUN not in run.data.tags:  # trained before it became a trial
                    self.client.set_tag(run.info.run_id, PARENT_RUN, tags[PARENT_RUN])
            else:
                all_tags = {"pipeline.key": key, "mlflow.source.name": "python -m pipeline.run", **tags}
                run = self.client.create_run(self.experiment, run_name=name, tags=all_tags)
            run_id = str(run.info.run_id)
            # Logged for an existing run too, because a kill may have come before; MLflow accepts equal values.
            self.client.log_batch(run_id, params=[Param(k, v) for k, v in params.items()])
            if not (run.inputs and run.inputs.dataset_inputs):
                self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
            return run_id

    def get_run(self, run_id: str) -> Run | None:
        """Return MLflow's run with parameters, tags and the last value of each metric, or None if it was deleted."""
        try:
            with self.errors():
                run = self.client.get_run(run_id)
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", None) == _NOT_FOUND:
                return None
            raise
        return None if run.info.lifecycle_stage == "deleted" else run

    def complete_curve(self, run_id: str, history: Sequence[MetricPoint]) -> None:
        """Log the points of a learning curve that a run does not have yet, without metrics that MLflow refuses."""
        run = self.get_run(run_id)
        self.log_accepted(run_id, missing_points(history, last_steps(run) if run else {}))

    def first_logged(self, run_id: str, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """Return a point for each metric of each point: that of the run where it has the step, else the one passed.

        A step that was computed again after a kill has other values and times; the first ones stay.
        """
        logged = []
        for point in points:
            for key, value in point.metrics.items():
                with self.errors():
                    history = self.client.get_metric_history(run_id, key)
                values = [(metric.timestamp, metric.value) for metric in history if metric.step == point.step]
                time_ms, first_value = values[0] if values else (point.time_ms, value)
                logged.append(MetricPoint(point.step, time_ms, {key: first_value}))
        return logged

    def log_points(
        self, run_id: str, points: Sequence[MetricPoint], model_id: str | None = None, dataset: Dataset | None = None
    ) -> None:
        """Log points in the order of their steps, as metrics of a LoggedModel on a dataset if given.

        Logging the same point again changes nothing, because MLflow drops metrics with equal time, step and value.
        """
        name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
        metrics = [
            Metric(key, value, point.time_ms, point.step, model_id, name, digest)
            for point in points
            for key, value in point.metrics.items()
        ]
        with self.errors():
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def log_accepted(
        self, run_id: str, points: Sequence[MetricPoint], model_id: str | None = None, dataset: Dataset | None = None
    ) -> dict[str, str]:
        """Log points without the metrics that MLflow refuses, and return the reason of each refusal by metric name."""
        # MLflow refuses a whole call because of one invalid metric, so a refused call is repeated by halves.
        try:
            self.log_points(run_id, points, model_id, dataset)
        except TrackingError as error:
            if error.status != 400:
                raise
            names = sorted({name for point in points for name in point.metrics})
            if len(names) == 1:
                return {names[0]: error.reason}
            refused: dict[str, str] = {}
            for half in (names[: len(names) // 2], names[len(names) // 2 :]):
                half_points = [
                    replace(p, metrics={name: p.metrics[name] for name in half if name in p.metrics}) for p in points
                ]
                refused |= self.log_accepted(run_id, half_points, model_id, dataset)
            return refused
        return {}

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self.errors():
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def describe(self, run_id: str, text: str) -> None:
        """Set the description at the top of a run's page, in Markdown."""
        self.tag(run_id, {"mlflow.note.content": text})

    @contextmanager
    def transfer(self, num_bytes: int) -> Iterator[None]:
        """Raise MLflow's request timeout in a `with` block that transfers files of up to `num_bytes` at 1 MB/s or more.

        A server that proxies artifacts answers after it has stored the whole file.
        """
        name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
        timeout = os.environ[name]
        os.environ[name] = str(max(int(timeout), _TRANSFER_SECONDS + num_bytes // _BYTES_PER_SECOND))
        try:
            yield
        finally:
            os.environ[name] = timeout

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Log the files of a folder as artifacts below `name`."""
        with self.errors(), self.transfer(_largest_file(folder)):
            self.client.log_artifacts(run_id, str(folder), name)

    def log_file(self, run_id: str, path: Path) -> None:
        """Log a file as an artifact."""
        with self.errors(), self.transfer(path.stat().st_size):
            self.client.log_artifact(run_id, str(path))

    def log_model(self, model_id: str, folder: Path) -> None:
        """Log the files of a folder as those of a LoggedModel."""
        with self.errors(), self.transfer(_largest_file(folder)):
            self.client.log_model_artifacts(model_id, str(folder))

    def resume_run(self, run_id: str) -> None:
        """Mark a run as RUNNING."""
        with self.errors():
            self.client.update_run(run_id, status="RUNNING")

    def end_run(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Set tags of a run, then mark it as FINISHED, FAILED or KILLED."""
        self.tag(run_id, tags or {})
        with self.errors():
            self.client.set_terminated(run_id, status)

    @contextmanager
    def marking_failure(self, run_id: str) -> Iterator[None]:
        """Mark a run as FAILED or KILLED if the `with` block raises, if MLflow answers within seconds."""
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"

            def mark() -> None:
                with suppress(TrackingError):  # because the error of the block is the one to report
                    self.end_run(run_id, status)

            thread = threading.Thread(target=mark, daemon=True)
            thread.start()
            thread.join(_MARK_SECONDS)
            raise


def _http_status(error: Exception) -> int:
    """Return the HTTP status of an error of MLflow, 409 for a conflict of two writers, 500 where there is no status."""
    if _CONFLICT.search(str(error)):  # which MLflow reports as a bad request or as an internal error
        return 409
    if isinstance(error, requests.HTTPError) and error.response is not None:  # of a server that proxies artifacts
        return error.response.status_code
    if not isinstance(error, MlflowException):
        return 500
    # Because MLflow has no error code for some statuses, such as 413, and then reports an internal error.
    match = re.search(r"failed with error code (\d{3}) !=", str(error))
    return int(match[1]) if match else int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain, because MLflow wraps network errors in layers that repeat the address."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _largest_file(folder: Path) -> int:
    """Return the size of the largest file below a folder in bytes, because MLflow sends one file per request."""
    return max((path.stat().st_size for path in folder.rglob("*")), default=0)
