"""What a search reports of its trials."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.events import WorkerFailed
from jobs.search.trials import Trial, TrialEvent, TrialResult
from pipeline.session import RunContext, Session
from pipeline.settings.parse import read_config
from pipeline.stages.tune_progress import SearchProgress
from pipeline.terminal import Reporter
from pipeline.workspace import Workspace


@pytest.mark.parametrize("retry", [True, False])
def test_failure_of_all_trials_keeps_whether_to_retry(
    retry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(3, {})
    search: Any = SimpleNamespace(trials=[], find_trial=lambda number: None, save=lambda: None)
    workspace = Workspace(read_config([f"workspace={tmp_path}"]))
    session = Session(RunContext(workspace, Reporter(json_output=True), ExitStack()), workspace)
    progress = SearchProgress(session, search, "run", ExitStack())
    monkeypatch.setattr(progress, "_uploader", lambda number, values: SimpleNamespace(trial=trial))
    failure = WorkerFailed("the disk is full", retryable=True, retry=retry)
    with pytest.raises(UserError, match="trial 3: the disk is full") as caught:
        progress([TrialEvent(3, {}, event) for event in (failure, TrialResult("failed"))])
    assert caught.value.retry == retry
