"""A run that is resumed by its name, and a new run that starts from another's checkpoint."""

import re
from pathlib import Path

import pytest
from helpers.commands import result_of, run, small
from mlflow import MlflowClient

from jobs.cli import UsageError
from pipeline.records import RunRecord, TrackingLocation
from pipeline.settings.parse import read_config
from pipeline.settings.schema import run_settings

NAME = "vlae-digits-0123456789ab"


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    """The override of a workspace with the record of a run that has other settings than the default."""
    settings = run_settings(read_config(["train.steps=77", "model.latent_dims=2,3", "data.num_images=600"]))
    RunRecord(settings=settings).write(tmp_path / "runs" / NAME / RunRecord.FILENAME)
    return f"workspace={tmp_path}"


def test_resume_takes_the_settings_of_the_run(workspace: str) -> None:
    config = read_config([f"resume={NAME}", workspace, "train.num_workers=2", "train.steps=77"])
    assert (config.train.steps, config.model.latent_dims, config.data.num_images) == (77, (2, 3), 600)
    assert config.train.num_workers == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.steps=78", "model.width=8"], r"model\.width \d+ -> 8, train\.steps 77 -> 78.*init_from=" + NAME),
        (["model=hvae"], "model vlae -> hvae"),
        (["preset=digits-hvae"], f"resume={NAME}"),
        (["seed=x"], "seed=x"),
    ],
)
def test_resume_with_other_settings_is_refused(workspace: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config([f"resume={NAME}", workspace, *overrides])


def test_run_name_may_be_an_unambiguous_prefix(workspace: str, tmp_path: Path) -> None:
    assert read_config(["resume=vlae", workspace]).resume == NAME
    assert read_config(["init_from=vlae-digits-0", workspace]).init_from == NAME
    (tmp_path / "runs" / "vlae-digits-1123456789ab").mkdir()
    assert read_config(["resume=vlae-digits-0", workspace]).resume == NAME
    with pytest.raises(UsageError, match=f"resume=vlae: 2 runs begin with this name .*{NAME}"):
        read_config(["resume=vlae", workspace])


def test_resume_takes_the_data_folder_of_the_run(tmp_path: Path) -> None:
    """Shards cannot be written again without data.root and data.on_error, which do not define a training."""
    config = read_config(["data=images", f"data.root={tmp_path}/pictures", "data.on_error=skip"])
    record = RunRecord(settings=run_settings(config), data={"root": str(config.data.root), "on_error": "skip"})
    record.write(tmp_path / "runs" / "vlae-images-0123456789ab" / RunRecord.FILENAME)
    assert read_config(["resume=vlae-images", f"workspace={tmp_path}"]) == config.model_copy(
        update={"workspace": tmp_path, "resume": "vlae-images-0123456789ab"}
    )
    moved = read_config(["resume=vlae-images", f"workspace={tmp_path}", f"data.root={tmp_path}/moved"])
    assert moved.data.root == tmp_path / "moved"


@pytest.mark.parametrize("key", ["resume", "init_from"])
@pytest.mark.parametrize("name", ["../runs", "hvae", f"{NAME}/x", "vlae-digits-00000000000g"])
def test_run_name_that_is_no_folder_name_is_refused(workspace: str, name: str, key: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{key}={name}")):
        read_config([f"{key}={name}", workspace])


@pytest.mark.parametrize("content", [None, "{", "[]", '{"key": "k"}', '{"key": "k", "settings": 3}'])
def test_resume_without_a_valid_record_names_it(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "runs" / NAME / RunRecord.FILENAME
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=rf"resume={NAME}: .*run\.json"):
        read_config([f"resume={NAME}", f"workspace={tmp_path}"])


def test_resume_uses_the_storage_and_tracking_of_the_run(workspace: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / NAME / RunRecord.FILENAME
    record = RunRecord.read(path)
    assert record is not None
    tracking = TrackingLocation(uri="http://h:5000", experiment="e", run_id="r")
    record.model_copy(update={"storage_path": "s3://bucket/prefix", "tracking": tracking}).write(path)
    config = read_config([f"resume={NAME}", workspace])
    assert config.storage_path == "s3://bucket/prefix"
    assert (config.tracking.uri, config.tracking.experiment) == ("http://h:5000", "e")
    assert read_config([f"resume={NAME}", workspace, "tracking.uri=http://other"]).tracking.uri == "http://other"


@pytest.mark.slow
def test_init_from_continues_with_other_settings(tmp_path: Path) -> None:
    first = result_of(run(small(stage="shard,train,evaluate", train__steps=20, storage_path="elsewhere"), tmp_path))
    assert (tmp_path / "elsewhere") in Path(first["checkpoint"]).parents
    assert (Path(first["checkpoint"]) / "checkpoint.json").exists()
    assert first["metrics"]["elbo"] < 0
    name = Path(first["checkpoint"]).parents[1].name
    resumed = result_of(run(["stage=train", "workspace=ws", "output=json", f"resume={name}"], tmp_path))
    assert (resumed["stages"], resumed["weights_sha256"]) == ({"train": "skipped"}, first["weights_sha256"])

    child = small(stage="train", train__steps=40, train__learning_rate=0.002, init_from=name, storage_path="elsewhere")
    process = run(child, tmp_path)
    second = result_of(process)
    assert f"from step 20 of {name}" in process.stderr
    assert Path(second["checkpoint"]).name == "step-00000040"
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    tags = client.get_run(second["run_id"]).data.tags
    assert tags["mlflow.parentRunId"] == first["run_id"]
    assert f"init_from={name}" in tags["command"]
    steps = [point.step for point in client.get_metric_history(second["run_id"], "train/loss")]
    assert steps == list(range(5, 41, 5))
    assert result_of(run(child, tmp_path))["stages"] == {"train": "skipped"}

    before = sorted(path.name for path in (tmp_path / "ws/runs").iterdir())
    for change, culprit in (
        ({"train__steps": 20}, "train.steps"),
        ({"train__steps": 40, "model__width": 8}, "model.width 4 -> 8"),
        ({"train__steps": 40, "init_from": "vlae-digits-000000000000"}, "init_from=vlae-digits-000000000000"),
    ):
        failed = run(small(**{"stage": "train", "storage_path": "elsewhere", "init_from": name, **change}), tmp_path)
        assert failed.returncode == 1
        assert culprit in failed.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "ws/runs").iterdir()) == before

    (tmp_path / "ws/runs" / name / "train.json").unlink()
    lost = run(["stage=shard,train", "workspace=ws", "storage_path=nowhere", f"resume={name}"], tmp_path)
    assert lost.returncode == 1
    assert f"resume={name}" in lost.stderr.splitlines()[-1]
