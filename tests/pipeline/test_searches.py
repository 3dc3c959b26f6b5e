"""The record of a search's trials, and the folder of a search."""

import shutil
from pathlib import Path

import pytest

from jobs.errors import CorruptedError
from jobs.search.trials import Trial
from pipeline.searches import Search, TrialsRecord
from pipeline.settings.parse import read_config
from pipeline.workspace import Workspace

SETTINGS = [
    "data.num_images=300", "data.image_size=16", "data.samples_per_task=120", "data.validation_fraction=0.1",
    "data.test_fraction=0.2",
]  # fmt: skip


def test_trials_record_keeps_types(tmp_path: Path) -> None:
    """Values and metrics come back with their types and bits."""
    trial = Trial(3, {"model.latent_dims": "3,4", "train.learning_rate": 0.1 + 0.2, "seed": 5}, "failed", "why")
    trial.add(10, {"elbo": -3.5})
    TrialsRecord(trials=[trial]).write(tmp_path / "trials.json")
    record = TrialsRecord.read(tmp_path / "trials.json")
    assert record is not None
    (read,) = record.trials
    assert read == trial
    assert read.key == trial.key
    assert read.reports == [(10, {"elbo": -3.5})]


def test_search_state_is_kept_in_folder(digit_dataset: Path, tmp_path: Path) -> None:
    """Another command finds the trials, and whether the search is complete for its number of trials."""

    def search(*overrides: str) -> Search:
        workspace = Workspace(
            read_config([*SETTINGS, f"workspace={tmp_path}", "tune.param_space.seed=0..9", *overrides])
        )
        if not Path(str(workspace.data_url)).exists():
            shutil.copytree(digit_dataset, str(workspace.data_url))
        return Search(workspace)

    first = search("tune.trials=2")
    assert not first.is_complete
    first.trials.append(Trial(0, {"seed": 4}, "finished", run="name", reports=[(5, {"elbo": -1.0})]))
    first.save()
    first.complete(exhausted=False)
    assert search("tune.trials=2").is_complete
    assert not search("tune.trials=3").is_complete
    again = search("tune.trials=3")
    assert again.trials == first.trials
    assert [config.seed for config in again.selected()] == [4]
    for number, status in enumerate(("stopped", "failed", "running", "finished"), start=1):
        again.trials.append(Trial(number, {"seed": 4 + number}, status, reports=[(5, {"elbo": -2.0})]))
    again.save()
    assert [config.seed for config in search("tune.select=all").selected()] == [4, 8]
    assert search("tune.seed=1").trials == []
    again.complete(exhausted=True)
    assert search("tune.trials=100").is_complete
    (again.folder / "trials.json").write_text("{")
    assert search("data.factors=hue").folder == first.folder  # of no effect on the ELBO
    assert search("data.factors=hue", "tune.objectives=mig").folder != search("tune.objectives=mig").folder
    with pytest.raises(CorruptedError, match=r"trials\.json"):
        _ = search().trials


def test_search_of_changed_preset_is_another_search(
    digit_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search among presets is named by their contents."""
    monkeypatch.chdir(tmp_path)
    preset = tmp_path / "preset.yaml"
    settings = [*SETTINGS, f"workspace={tmp_path}", "tune.param_space.preset=preset.yaml"]
    preset.write_text("model.width: 8\n")
    workspace = Workspace(read_config(settings))
    shutil.copytree(digit_dataset, str(workspace.data_url))
    folders = []
    for width in (8, 16, 8):
        preset.write_text(f"model.width: {width}\n")
        folders.append(Search(workspace).folder)
    assert folders[0] == folders[2] != folders[1]
