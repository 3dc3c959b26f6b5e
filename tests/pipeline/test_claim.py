"""preset=claim from images to the page of results, small: every trial is evaluated, and more seeds go on with it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import result_of, run, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def claim(seeds: str) -> list[str]:
    left_to_the_presets = {"model.width", "model.hidden_dims", "model.latent_dims"}
    words = [word for word in small(stage="shard,tune,evaluate") if word.partition("=")[0] not in left_to_the_presets]
    presets = "tune.param_space.preset=claim-vlae/claim-hvae"
    return ["preset=claim", *words, presets, f"tune.param_space.seed={seeds}", "tune.trials=4"]


def test_the_claim_from_images_to_the_page(tmp_path: Path) -> None:
    one = result_of(run(claim("0"), tmp_path))
    assert {trial["values"]["preset"] for trial in one["search"]["trials"]} == {"claim-vlae", "claim-hvae"}
    assert len(one["runs"]) == 2
    two = result_of(run(claim("0/1"), tmp_path))
    assert len(two["runs"]) == 4
    assert {found["run_id"] for found in one["runs"]} < {found["run_id"] for found in two["runs"]}
    assert all("elbo" in found["scores"] for found in two["runs"])
    command = [sys.executable, "-m", "pipeline.results", "workspace=ws", "out=page"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "page" / "results.md").read_text()
    assert "| vlae (2) | hvae (2) |" in page
    assert set(re.findall(r"`([0-9a-f]{32})`", page)) == {found["run_id"] for found in two["runs"]}
    (picture,) = (tmp_path / "page" / "results").glob("digits-*-hvae-blocks.png")
    assert picture.stat().st_size > 10_000
    again = result_of(run(claim("0/1"), tmp_path))
    assert set(again["stages"].values()) == {"skipped"}
