"""What the stages of a command share."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.records import RunRecord, TrackingLocation, TrainRecord
from pipeline.session import RunContext, Session
from pipeline.settings.parse import read_config
from pipeline.terminal import Reporter
from pipeline.workspace import Run, Workspace

LOCATION = {"uri": "", "experiment": "vlae"}


def test_unfinished_checkpoints_are_of_this_mlflow(tmp_path: Path) -> None:
    """A curve is completed in the MLflow that has the run, unless its training has ended there."""

    def start(run_id: str, **changes: str) -> Run:
        run = Run(tmp_path / "runs" / run_id)
        tracking = TrackingLocation(**LOCATION | changes, run_id=run_id)
        run.write(RunRecord(settings={"seed": "0"}, tracking=tracking))
        return run

    unfinished = start("a")
    start("other-server", uri="http://other")
    start("other-experiment", experiment="other")
    start("finished").write(TrainRecord(run_id="finished", checkpoint="step-00000001", step=1, weights_sha256="ab"))
    elsewhere = start("b")  # finished in another MLflow, and evaluated with this one
    elsewhere.write(TrainRecord(run_id="other", checkpoint="step-00000001", step=1, weights_sha256="ab"))
    Run(tmp_path / "runs" / "untracked").write(RunRecord(settings={"seed": "0"}))
    context = RunContext(Workspace(read_config([f"workspace={tmp_path}"])), Reporter(json_output=True), ExitStack())
    assert context._unfinished_checkpoints(LOCATION) == {"a": unfinished.checkpoint_url, "b": elsewhere.checkpoint_url}


@pytest.mark.parametrize(("storage", "is_shared"), [("", False), ("link", False), ("other", True)])
def test_storage_in_the_workspace_is_not_shared(tmp_path: Path, storage: str, is_shared: bool) -> None:
    """force=train removes the folder of a run in the workspace, and an object of its owner with it."""
    (tmp_path / "link").symlink_to(tmp_path / "ws")
    config = read_config([f"workspace={tmp_path}/ws", f"storage_path={storage and tmp_path / storage}"])
    workspace = Workspace(config)
    context = RunContext(workspace, Reporter(json_output=True), ExitStack())
    assert bool(Session(context, workspace).owner) == is_shared
