"""The installed command `vlae`."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from helpers.commands import environment

from pipeline.console import main
from pipeline.records import EvaluateRecord, RunRecord, TrainRecord
from pipeline.settings.parse import PRESETS, read_config


def test_console_is_installed_as_vlae() -> None:
    [entry] = entry_points(group="console_scripts", name="vlae")
    assert entry.load()  # fails if the package was installed before the command existed


def test_console_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlae {version('vlae-pipeline')}\n"


@pytest.mark.parametrize("command", ["ui", "list", "presets", "run", "submit", "results"])
def test_console_command_prints_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("arguments", [["lis"], ["list", "name=a"], ["presets", "nope"], ["run", "train.stepz=1"]])
def test_console_refuses_an_unknown_argument(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_presets_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == [path.stem for path in sorted(PRESETS.glob("*.yaml"))]
    assert all(len(line.split()) > 1 for line in lines)


def test_presets_prints_a_preset_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "digits-hvae"]) == 0
    own = tmp_path / "own.yaml"
    own.write_text(capsys.readouterr().out)
    assert read_config([f"preset={own}"]) == read_config(["preset=digits-hvae"])


def test_list_shows_each_run_of_a_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model.latent_dims": "4,4,10", "train.steps": "1500", "seed": "3"}
    done, open_, damaged = (tmp_path / "runs" / name for name in ("done", "open", "damaged"))
    for folder in (done, open_):
        RunRecord(settings=settings).write(folder / "run.json")
    TrainRecord(run_id="r", checkpoint="c", step=1500, weights_sha256="w").write(done / "train.json")
    EvaluateRecord(key="k", weights_sha256="w", model_uri="m", metrics={"elbo": -14590.6, "x": 1.0}).write(
        done / "evaluate.json"
    )
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    assert main(["list", f"workspace={tmp_path}"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["done"] == ["evaluated", "4,4,10", "1500", "3", "elbo", "-14,591"]
    assert rows["open"] == ["unfinished", "4,4,10", "1500", "3"]
    assert rows["damaged"][0] == "damaged:"


def test_list_without_a_workspace_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", f"workspace={tmp_path}/none"]) == 1
    assert "not found" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "0", "70000"])
def test_ui_refuses_an_invalid_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", f"port={port}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: port={port}: invalid.")


def test_ui_does_not_create_a_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", f"workspace={tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none/mlflow.db: not found.")
    assert not (tmp_path / "none").exists()


def test_ui_names_a_damaged_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    assert main(["ui", f"workspace={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/mlflow.db: damaged")


def test_console_ignores_packages_of_the_current_folder(tmp_path: Path) -> None:
    for name in ("pipeline", "jobs", "vlae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')")
    command = Path(sys.executable).with_name("vlae")
    ended = subprocess.run(
        [command, "--version"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
