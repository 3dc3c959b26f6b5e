"""A package of the user that hides one of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("path", ["jobs.py", "vlae/__init__.py"])
def test_command_in_folder_with_own_package_is_refused(tmp_path: Path, path: str) -> None:
    foreign = tmp_path / path
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("open('executed', 'w')")
    (tmp_path / "utils.py").write_text("raise SystemExit")  # any other module is the user's business
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pipeline.run", "dry_run=true"]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith(f"error: {foreign}: ")
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "executed").exists()
