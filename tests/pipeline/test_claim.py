"""A small preset=claim from images to the results page; more seeds continue the search."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import environment, result_of, run, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def claim(seeds: str) -> list[str]:
    preset_keys = {"model.width", "model.hidden_dims", "model.latent_dims"}
    overrides = [
        override for override in small(stage="shard,tune,evaluate") if override.partition("=")[0] not in preset_keys
    ]
    presets = "tune.param_space.preset=claim-vlae/claim-hvae"
    return ["preset=claim", *overrides, presets, f"tune.param_space.seed={seeds}", "tune.trials=4"]


def test_claim_from_images_to_results_page(tmp_path: Path) -> None:
    first = result_of(run(claim("0"), tmp_path))
    assert {trial["values"]["preset"] for trial in first["search"]["trials"]} == {"claim-vlae", "claim-hvae"}
    assert len(first["runs"]) == 2
    second = result_of(run(claim("0/1"), tmp_path))
    assert len(second["runs"]) == 4
    assert {trained["run_id"] for trained in first["runs"]} < {trained["run_id"] for trained in second["runs"]}
    assert all("elbo" in trained["metrics"] for trained in second["runs"])
    command = [sys.executable, "-m", "pipeline.results", "workspace=ws", "out=page"]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert (completed.returncode, completed.stderr) == (0, "")
    page = (tmp_path / "page" / "results.md").read_text()
    assert "| vlae (2) | hvae (2) |" in page
    assert set(re.findall(r"`([0-9a-f]{32})`", page)) == {trained["run_id"] for trained in second["runs"]}
    (picture,) = (tmp_path / "page" / "results").glob("digits-*-hvae-blocks.png")
    assert picture.stat().st_size > 10_000
    repeat = result_of(run(claim("0/1"), tmp_path))
    assert set(repeat["stages"].values()) == {"skipped"}
