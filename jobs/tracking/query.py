"""Queries of evaluated trials: settings, metrics and figures of finished runs in MLflow."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from jobs.tracking.client import Tracker

VALUE = "tune.value."  # prefix of a trial's tags that hold its values of the search space
_PAGE = 1000  # runs per request
_TEST = "test/"


@dataclass(frozen=True)
class TrackedRun:
    """A training that was evaluated: `values` of the searched settings and `metrics` of the test split.

    `command` repeats the run, and `search` is the command of the search that the run is a trial of.
    """

    run_id: str
    command: str
    search: str
    data_fingerprint: str
    values: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def evaluated_trials(tracker: Tracker) -> list[TrackedRun]:
    """Return the finished trials of the experiment that have a metric of the test split, the newest first."""
    runs: list[Run] = []
    query, order = "tags.`tune.status` = 'finished'", ["attributes.start_time DESC"]
    with tracker.errors():
        token: str | None = ""
        while token is not None:
            page = tracker.client.search_runs(
                [tracker.experiment], query, ViewType.ACTIVE_ONLY, _PAGE, order, token or None
            )
            runs += [run for run in page if any(name.startswith(_TEST) for name in run.data.metrics)]
            token = page.token or None
        parents = {run.data.tags[MLFLOW_PARENT_RUN_ID] for run in runs if MLFLOW_PARENT_RUN_ID in run.data.tags}
        searches = {parent: tracker.client.get_run(parent).data.tags.get("command", "") for parent in parents}
    trials = []
    for run in runs:
        tags = run.data.tags
        trials.append(
            TrackedRun(
                run_id=str(run.info.run_id),
                command=tags.get("command", ""),
                search=searches.get(tags.get(MLFLOW_PARENT_RUN_ID, ""), ""),
                data_fingerprint=tags.get("data_fingerprint", ""),
                values={key.removeprefix(VALUE): value for key, value in tags.items() if key.startswith(VALUE)},
                params=dict(run.data.params),
                metrics={
                    name.removeprefix(_TEST): value
                    for name, value in run.data.metrics.items()
                    if name.startswith(_TEST)
                },
            )
        )
    return trials


def picture(tracker: Tracker, run_id: str, name: str) -> bytes:
    """Return the PNG bytes of a run's figure, named without suffix; raise TrackingError if there is no such figure."""
    with tempfile.TemporaryDirectory() as folder, tracker.errors():
        return Path(tracker.client.download_artifacts(run_id, f"figures/{name}.png", folder)).read_bytes()
