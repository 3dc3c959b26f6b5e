"""Finished trials of searches as MLflow has them: settings, scores, pictures."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from jobs.tracking.client import Tracker

VALUE = "tune.value."  # what the tags of a trial begin with that say which point of the space it is
_PAGE = 1000
_TEST = "test/"


@dataclass(frozen=True)
class TrackedRun:
    """A training that was evaluated."""

    run_id: str
    command: str  # that repeats it
    search: str  # the command of the search that it is a trial of
    data_fingerprint: str
    values: Mapping[str, str]  # of the settings that were searched
    params: Mapping[str, str]
    scores: Mapping[str, float]  # of the test split, by name


def evaluated_trials(tracker: Tracker) -> list[TrackedRun]:
    """All trials of the experiment that were evaluated, the newest first.

    Raises:
        UserError: MLflow does not answer.
    """
    found: list[Run] = []
    with tracker.errors():
        page = None
        while page is None or page.token:
            page = tracker.client.search_runs(
                [tracker.experiment],
                "tags.`tune.status` = 'finished'",
                ViewType.ACTIVE_ONLY,
                _PAGE,
                ["attributes.start_time DESC"],
                page.token if page else None,
            )
            found += page
        found = [run for run in found if any(name.startswith(_TEST) for name in run.data.metrics)]
        parents = {run.data.tags[MLFLOW_PARENT_RUN_ID] for run in found if MLFLOW_PARENT_RUN_ID in run.data.tags}
        searches = {parent: tracker.client.get_run(parent).data.tags.get("command", "") for parent in parents}
    return [_tracked(run, searches) for run in found]


def _tracked(run: Run, searches: Mapping[str, str]) -> TrackedRun:
    tags, metrics = run.data.tags, run.data.metrics
    return TrackedRun(
        str(run.info.run_id),
        tags.get("command", ""),
        searches.get(tags.get(MLFLOW_PARENT_RUN_ID, ""), ""),
        tags.get("data_fingerprint", ""),
        {key.removeprefix(VALUE): value for key, value in tags.items() if key.startswith(VALUE)},
        dict(run.data.params),
        {key.removeprefix(_TEST): value for key, value in metrics.items() if key.startswith(_TEST)},
    )


def picture(tracker: Tracker, run_id: str, name: str) -> bytes:
    """A picture of a run, PNG.

    Raises:
        UserError: it has none of that name, or MLflow does not answer.
    """
    with tempfile.TemporaryDirectory() as folder, tracker.errors():
        return Path(tracker.client.download_artifacts(run_id, f"figures/{name}.png", folder)).read_bytes()
