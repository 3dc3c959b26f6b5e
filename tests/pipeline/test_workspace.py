"""Names of datasets, trainings and evaluations: another content or setting is another name."""

from pathlib import Path

import pytest

from jobs.data.manifest import MANIFEST, Manifest, Shard
from jobs.errors import UserError
from pipeline.records import RunRecord, TrainRecord
from pipeline.settings.parse import read_config
from pipeline.workspace import Run, Workspace, siblings

SETTINGS = {"seed": "0", "train.steps": "10"}
CHECKPOINT = "step-00000010"


def workspace(folder: Path, *overrides: str) -> Workspace:
    return Workspace(read_config([f"workspace={folder}", *overrides]))


def test_training_name_changes_with_data_and_settings(tmp_path: Path) -> None:
    names = {workspace(tmp_path, *overrides).training_name(data) for overrides in ([], ["seed=1"]) for data in "ab"}
    assert len(names) == 4
    assert workspace(tmp_path, "train.num_workers=2").training_name("a") in names  # how it runs does not count


def test_evaluate_key_changes_with_mlflow_and_settings(tmp_path: Path) -> None:
    overrides = ([], ["tracking.uri=http://a"], ["tracking.experiment=b"], ["evaluate.num_images=30"])
    assert len({workspace(tmp_path, *each).evaluate_key() for each in overrides}) == 4
    assert workspace(tmp_path, "train.steps=9").evaluate_key() == workspace(tmp_path / "other").evaluate_key()


def test_evaluation_of_a_version_changes_with_the_data(tmp_path: Path) -> None:
    def folder(sha256: str, uri: str = "") -> Path:
        shard = Shard("train-00000", "train", 1, 1, sha256, "", None)
        manifest = Manifest((16, 16, 3), "npy", (), "source", (shard,))
        overrides = ["stage=evaluate", "model_uri=models:/digits/1", f"tracking.uri={uri}"]
        return workspace(tmp_path, *overrides).run(manifest).folder

    folders = {folder("a"), folder("b"), folder("a", "http://a")}
    assert len(folders) == 3
    assert all(path.name.startswith("digits-1-on-digits-") for path in folders)


def test_data_url_without_source_must_be_unique(tmp_path: Path) -> None:
    """The folder of the images is gone: the only complete version of the shards is used, one of two is not."""
    without_source = workspace(tmp_path, "data=images", f"data.root={tmp_path}/gone")
    assert without_source.data_url is None
    folders = [tmp_path / "shards" / f"{without_source.data_name}-{version}" for version in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[1] / MANIFEST).touch()
    assert without_source.data_url == str(folders[1])
    (folders[0] / MANIFEST).touch()
    with pytest.raises(UserError, match=f"2 versions of {without_source.data_name}"):
        _ = without_source.data_url


def test_siblings_differ_in_the_seed_alone(tmp_path: Path) -> None:
    def finish(name: str, data: str = "d", **changes: str) -> Run:
        run = Run(tmp_path / "runs" / name)
        run.write(RunRecord(settings=SETTINGS | changes, data_fingerprint=data))
        run.write(TrainRecord(run_id="r", checkpoint=CHECKPOINT, step=10, weights_sha256="ab"))
        run.checkpoint(CHECKPOINT).mkdir(parents=True)
        return run

    own, *others = finish("own"), finish("a", seed="9"), finish("b", seed="2")
    finish("other-data", "e", seed="3")
    finish("other-settings", seed="4", **{"train.steps": "20"})
    Run(tmp_path / "runs" / "unfinished").write(RunRecord(settings=SETTINGS | {"seed": "5"}, data_fingerprint="d"))
    assert siblings(own, SETTINGS, "d") == [run.checkpoint(CHECKPOINT) for run in reversed(others)]
