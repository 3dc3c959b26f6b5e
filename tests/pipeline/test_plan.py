"""The plan: decisions as a table, and the status of stages from the files of a workspace."""

import shutil
from pathlib import Path

import pytest

from jobs.errors import UserError
from pipeline.plan import decide, missing_input, stage_status
from pipeline.records import EvaluateRecord, TrainRecord
from pipeline.settings.parse import read_config
from pipeline.workspace import Workspace

# Of the fixture digit_dataset.
DATA = ["data.num_images=300", "data.image_size=16", "data.samples_per_task=120", "data.validation_fraction=0.1"]
DATA += ["data.test_fraction=0.2"]


@pytest.mark.parametrize(
    ("stage", "status", "forced", "action"),
    [
        ("shard", "missing", [], "run"),
        ("shard", "partial", [], "resume"),
        ("shard", "complete", [], "skip"),
        ("shard", "complete", ["shard"], "run"),
        ("train", "missing", ["shard"], "run"),
        ("train", "partial", [], "resume"),
        ("train", "partial", ["train"], "run"),
        ("train", "complete", [], "skip"),
        ("train", "complete", ["evaluate"], "skip"),
        ("evaluate", "complete", [], "skip"),
        ("evaluate", "missing", [], "run"),
        ("evaluate", "complete", ["evaluate"], "run"),
    ],
)
def test_decide_returns_action_and_reason(stage: str, status: str, forced: list[str], action: str) -> None:
    step = decide(stage, status, forced=forced)
    assert step.action == action
    assert step.reason


def test_missing_input_names_the_stages_to_run() -> None:
    assert "stage=shard,train,evaluate" in (missing_input("evaluate", ["evaluate"]) or "")
    assert missing_input("evaluate", ["train", "evaluate"]) is None
    assert missing_input("shard", ["shard"]) is None


def test_stage_status_follows_the_files(digit_dataset: Path, tmp_path: Path) -> None:
    workspace = Workspace(read_config([*DATA, f"workspace={tmp_path}"]))
    assert stage_status(workspace, "shard") == "missing"
    assert stage_status(workspace, "train") == "missing"
    shutil.copytree(digit_dataset, str(workspace.data_url))
    assert stage_status(workspace, "shard") == "complete"
    dataset = workspace.dataset()
    assert dataset is not None
    run = workspace.run(dataset)
    assert stage_status(workspace, "train") == "missing"
    (run.checkpoints / "step-00000002").mkdir(parents=True)
    (run.checkpoints / "step-00000002" / "checkpoint.json").touch()
    assert stage_status(workspace, "train") == "partial"
    run.write(TrainRecord(run_id="r", checkpoint="step-00000002", step=2, weights_sha256="ab"))
    assert stage_status(workspace, "train") == "complete"
    assert stage_status(workspace, "evaluate") == "missing"
    record = EvaluateRecord(key=workspace.evaluate_key(), weights_sha256="ab", model_uri="models:/m/1", metrics={})
    run.write(record)
    assert stage_status(workspace, "evaluate") == "complete"
    for change in ({"weights_sha256": "cd"}, {"key": "other"}):
        run.write(record.model_copy(update=change))
        assert stage_status(workspace, "evaluate") == "missing"


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["stage=train"], "stage=shard,train"),
        (["stage=tune", "tune.param_space.seed=0/1"], "stage=shard,tune"),
        (["stage=evaluate", "model_uri=models:/m/1"], "stage=shard,evaluate"),
    ],
)
def test_stage_status_without_shards_names_the_stages(overrides: list[str], culprit: str, tmp_path: Path) -> None:
    workspace = Workspace(read_config([*overrides, f"workspace={tmp_path}"]))
    with pytest.raises(UserError, match=culprit):
        stage_status(workspace, workspace.config.stage[0])


def test_stage_status_of_a_resumed_run_needs_a_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    workspace = Workspace(read_config([*DATA, f"workspace={tmp_path}"]))
    shutil.copytree(digit_dataset, str(workspace.data_url))
    dataset = workspace.dataset()
    assert dataset is not None
    name = workspace.training_name(dataset.fingerprint)
    resumed = Workspace(workspace.config.model_copy(update={"resume": name}))
    with pytest.raises(UserError, match=f"resume={name}"):
        stage_status(resumed, "train")
    other = Workspace(workspace.config.model_copy(update={"resume": "vlae-digits-000000000000"}))
    with pytest.raises(UserError, match=r"resume=vlae-digits-0{12}"):
        stage_status(other, "train")
