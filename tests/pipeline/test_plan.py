"""The plan: decisions as a table, and the status of stages from the files of a workspace."""

import shutil
from pathlib import Path

import pytest
from helpers.datasets import unprivileged, write_dataset
from PIL import Image

from jobs.errors import UserError
from pipeline.plan import Step, decide, make_plan, missing_input, stage_status
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
    chosen = Workspace(read_config([*DATA, f"workspace={tmp_path}", "data.factors=hue"]))
    assert [stage_status(chosen, stage) for stage in ("shard", "train", "evaluate")] == ["complete"] * 2 + ["missing"]
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


def test_stage_status_forced_shard_ignores_damage(digit_dataset: Path, tmp_path: Path) -> None:
    """A damaged manifest, which is an error without force=shard, is about to be replaced."""
    workspace = Workspace(read_config([*DATA, f"workspace={tmp_path}", "stage=shard"]))
    shutil.copytree(digit_dataset, str(workspace.data_url))
    (Path(str(workspace.data_url)) / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json"):
        stage_status(workspace, "shard")
    forced = Workspace(read_config([*DATA, f"workspace={tmp_path}", "stage=shard", "force=shard"]))
    assert stage_status(forced, "shard") == "missing"


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


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")


def image_workspace(folder: Path, *overrides: str) -> Workspace:
    return Workspace(
        read_config(["data=images", "data.image_size=16", "stage=shard", *overrides, f"data.root={folder}"])
    )


def plan(workspace: Workspace) -> Step:
    (step,) = make_plan(workspace.config)
    return step


def test_make_plan_counts_what_is_left_out(tmp_path: Path) -> None:
    """Complete shards are no reason to be silent about a file that was added and is not read."""
    write_images(tmp_path / "data", 30)
    (tmp_path / "data" / "._1.png").touch()
    workspace = image_workspace(tmp_path / "data", f"workspace={tmp_path / 'ws'}")
    assert "30 images" in plan(workspace).cost
    assert plan(workspace).cost.endswith("left out: hidden or system files (1)")
    assert workspace.source
    manifest = write_dataset(workspace.source, str(workspace.data_url), workspace.config.data)
    assert manifest.left_out == {"hidden or system files": 1}
    (tmp_path / "data" / "new.heic").touch()
    assert plan(workspace).action == "skip"
    assert plan(workspace).cost.endswith("left out: hidden or system files (1), other file types: .heic (1)")


def test_workspace_in_the_data_folder_is_no_data(tmp_path: Path) -> None:
    """Workspace, storage and cache may be below the folder of the data, above it, or the folder itself."""
    folder = tmp_path / "data"
    write_images(folder, 30)
    inside = [f"workspace={folder / 'ws'}", f"storage_path={folder / 'store'}", f"data.cache_dir={folder / 'c'}"]
    for overrides, expected in (
        (inside, "c store ws (3)"),
        ([f"workspace={folder}"], "cache runs (2)"),
        ([f"workspace={tmp_path}"], ""),
    ):
        workspace = image_workspace(folder, *overrides)
        written = [*expected.split()[:-1]] or ["../runs"]
        for name in written:
            (folder / name / "figures").mkdir(parents=True)
            shutil.copy(folder / "1.png", folder / name / "figures" / "2.png")
        assert workspace.source
        assert workspace.source.num_samples == 30
        assert plan(workspace).cost.endswith(f": {expected}" if expected else "MB")
        for name in written:
            shutil.rmtree(folder / name)


def test_stage_status_of_shards_without_broken_images(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 30)
    (tmp_path / "data" / "7.png").write_bytes(b"broken")
    overrides = [f"workspace={tmp_path / 'ws'}"]
    workspace = image_workspace(tmp_path / "data", *overrides, "data.on_error=skip")
    assert workspace.source
    write_dataset(workspace.source, str(workspace.data_url), workspace.config.data)
    assert stage_status(workspace, "shard") == "complete"
    assert "skipped 1 image: 7.png" in plan(workspace).cost
    strict = image_workspace(tmp_path / "data", *overrides)
    assert strict.data_url == workspace.data_url
    with pytest.raises(UserError, match=r"data\.on_error=.*7\.png"):
        stage_status(strict, "shard")
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "7.png")  # repaired
    assert stage_status(image_workspace(tmp_path / "data", *overrides), "shard") == "missing"


def test_stage_status_closed_folder_is_not_a_missing_source() -> None:
    """The shards of a folder are used without the folder, but not while some of its files may be other ones."""
    with unprivileged() as folder:
        write_images(folder / "data", 30)
        workspace = image_workspace(folder / "data", f"workspace={folder / 'ws'}")
        assert workspace.source
        write_dataset(workspace.source, str(workspace.data_url), workspace.config.data)
        assert stage_status(workspace, "shard") == "complete"
        (folder / "data" / "more").mkdir(mode=0)
        with pytest.raises(UserError, match=r"data\.root=.* more/"):
            stage_status(image_workspace(folder / "data", f"workspace={folder / 'ws'}"), "shard")


def test_make_plan_invalid_source_is_not_a_missing_one(tmp_path: Path) -> None:
    """Labels that are being corrected must not lead to shards of the old labels; without the folder it is noted."""
    folder = tmp_path / "data"
    write_images(folder, 30)
    rows = [f"{number}.png,{number % 3}" for number in range(30)]
    (folder / "factors.csv").write_text("\n".join(["file,kind", *rows]))
    workspace = image_workspace(folder, f"workspace={tmp_path / 'ws'}")
    assert workspace.source
    write_dataset(workspace.source, str(workspace.data_url), workspace.config.data)
    (folder / "factors.csv").write_text("\n".join(["file,kind", *rows[:-1], "29.png,"]))
    with pytest.raises(UserError, match=r"29\.png"):
        plan(workspace)
    folder.rename(tmp_path / "elsewhere")
    assert plan(workspace).action == "skip"
    assert plan(workspace).cost == "the source is missing, so the existing shards are used"
