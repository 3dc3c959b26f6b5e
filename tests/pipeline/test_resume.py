"""A run that goes on by its name, and a new one that begins with another's checkpoint."""

import json
from pathlib import Path

import pytest
from helpers.commands import result_of, run, small
from mlflow import MlflowClient

from jobs.cli import UsageError
from pipeline.settings.parse import read_config
from pipeline.settings.schema import run_settings

NAME = "vlae-digits-0123456789ab"


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    """With the record of a run that is not all default."""
    settings = run_settings(read_config(["train.steps=77", "model.latent_dims=2,3", "data.num_images=600"]))
    folder = tmp_path / "runs" / NAME
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"key": "k", "settings": settings}))
    return f"workspace={tmp_path}"


def test_a_run_has_its_own_settings(workspace: str) -> None:
    config = read_config([f"resume={NAME}", workspace, "train.num_workers=2", "train.steps=77"])
    assert (config.train.steps, config.model.latent_dims, config.data.num_images) == (77, (2, 3), 600)
    assert config.train.num_workers == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.steps=78", "model.width=8"], r"model\.width \d+ -> 8, train\.steps 77 -> 78.*init_from=" + NAME),
        (["model=hvae"], "model vlae -> hvae"),
        (["preset=digits-hvae"], "would change what it makes"),
        (["seed=x"], "seed=x"),
    ],
)
def test_words_that_change_the_run_are_refused(workspace: str, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config([f"resume={NAME}", workspace, *words])


@pytest.mark.parametrize("name", ["../runs", "vlae", f"{NAME}/x", "vlae-digits-00000000000g"])
def test_names_of_no_run(workspace: str, name: str) -> None:
    for key in ("resume", "init_from"):
        with pytest.raises(UsageError, match="must be the name of a run's folder"):
            read_config([f"{key}={name}", workspace])


def test_a_run_that_is_not_there(workspace: str) -> None:
    with pytest.raises(UsageError, match=r"resume=vlae-digits-0{12}: .*run\.json cannot be read"):
        read_config(["resume=vlae-digits-000000000000", workspace])


def test_a_run_goes_on_where_its_checkpoints_and_its_curve_are(workspace: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / NAME / "run.json"
    places = {
        "storage_path": "s3://bucket/place",
        "tracking": {"uri": "http://h:5000", "experiment": "e", "run_id": "r"},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **places}))
    config = read_config([f"resume={NAME}", workspace])
    assert (config.storage_path, config.tracking.uri, config.tracking.experiment) == (
        "s3://bucket/place",
        "http://h:5000",
        "e",
    )
    assert read_config([f"resume={NAME}", workspace, "tracking.uri=http://other"]).tracking.uri == "http://other"


@pytest.mark.slow
def test_a_child_goes_on_from_its_parent(tmp_path: Path) -> None:
    words = small(stage="shard,train,evaluate", train__steps=20, storage_path="elsewhere")
    first = result_of(run(words, tmp_path))
    assert (tmp_path / "elsewhere") in Path(first["checkpoint"]).parents
    assert (Path(first["checkpoint"]) / "checkpoint.json").exists()
    assert first["scores"]["elbo"] < 0
    name = Path(first["checkpoint"]).parents[1].name
    again = result_of(run(["stage=train", "workspace=ws", "output=json", f"resume={name}"], tmp_path))
    assert (again["stages"], again["weights_sha256"]) == ({"train": "skipped"}, first["weights_sha256"])

    child = small(stage="train", train__steps=40, train__learning_rate=0.002, init_from=name, storage_path="elsewhere")
    done = run(child, tmp_path)
    second = result_of(done)
    assert f"a new run, from step 20 of {name}" in done.stderr
    assert Path(second["checkpoint"]).name == "step-00000040"
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    tags = client.get_run(second["run_id"]).data.tags
    assert tags["mlflow.parentRunId"] == first["run_id"]
    assert f"init_from={name}" in tags["command"]
    steps = [point.step for point in client.get_metric_history(second["run_id"], "train/loss")]
    assert steps == list(range(5, 41, 5))
    assert result_of(run(child, tmp_path))["stages"] == {"train": "skipped"}

    before = sorted(path.name for path in (tmp_path / "ws/runs").iterdir())
    for wrong, message in (
        ({"train__steps": 20}, "has made 20 steps: set train.steps above that"),
        ({"train__steps": 40, "model__width": 8}, "has another model (model.width 4 -> 8)"),
        (
            {"train__steps": 40, "init_from": "vlae-digits-000000000000"},
            "init_from=vlae-digits-000000000000 is no run of",
        ),
    ):
        failed = run(small(**{"stage": "train", "storage_path": "elsewhere", "init_from": name, **wrong}), tmp_path)
        assert failed.returncode == 1
        assert message in failed.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "ws/runs").iterdir()) == before

    (tmp_path / "ws/runs" / name / "train.json").unlink()
    lost = run(["stage=shard,train", "workspace=ws", "storage_path=nowhere", f"resume={name}"], tmp_path)
    assert lost.returncode == 1
    assert f"resume={name} has no checkpoint in" in lost.stderr.splitlines()[-1]
