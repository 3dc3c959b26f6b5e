"""The examples of docs/extending.md are run as they are written and compared with independent answers."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import open_split, write_dataset
from sklearn.neighbors import NearestNeighbors

from jobs.data.sources.base import BaseDataConfig
from vlae.config import VaeConfig
from vlae.models.base import HierarchicalModel
from vlae.traversals import resample_rung

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def example(name: str) -> Any:
    """Run the example of the page that defines `name`, and return what it defines."""
    (block,) = (block for block in blocks() if re.search(rf"^(class|def) {name}\b", block, re.M))
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace[name]


def test_metric_example_matches_scikit_learn() -> None:
    score = example("nearest_neighbor_score")
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 4, (200, 2))
    nearest = NearestNeighbors(n_neighbors=2).fit(codes).kneighbors(codes, return_distance=False)[:, 1]
    assert score(codes, factors) == pytest.approx((factors == factors[nearest]).mean())
    assert score(factors + rng.normal(0, 0.01, factors.shape), factors) == 1


# Run with a copy of the packages that has the example's file and entry.
USE_METRIC = """
from types import SimpleNamespace

import numpy as np
from jobs.data.sources.base import Factor
from jobs.evaluation.code_metrics import compute_group
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import EncodedDataset
from jobs.evaluation.registry import metrics_markdown, required_factors
from pipeline.run_page import description
from pipeline.stages.evaluate import check_evaluation
from pipeline.settings.parse import read_config

config = read_config(["tune.objectives=nearest_neighbor", "evaluate.champion_metric=nearest_neighbor"])
assert config.tune.objectives == (config.evaluate.champion_metric,) == ("nearest_neighbor",)
assert required_factors(config.tune.objectives) == 1
dataset = SimpleNamespace(select_factors=lambda _: [Factor("digit", (0, 1))], num_samples=lambda _: 100)
check_evaluation(SimpleNamespace(config=config, dataset=dataset))
assert "`nearest_neighbor/rung_l`" in metrics_markdown()
assert "do nearest neighbors share factors" in description("run", {"nearest_neighbor": 1.0}, "command")
rng = np.random.default_rng(0)
factors = np.stack([np.arange(64) % 4, np.arange(64) // 4 % 4], axis=1)
rungs = [(factors[:, [k]] + rng.normal(0, 0.01, (64, 1))).astype(np.float32) for k in range(2)]
codes = Encodings(rungs, rungs, rungs, rungs, rungs, np.zeros(64, np.float32), 0.0)
encoded = EncodedDataset(codes, factors, ["a", "b"], 64, True, 0, "", rungs, rungs, factors)
metrics = compute_group("information", encoded)
assert metrics["nearest_neighbor"] == 1.0
assert 0.5 < metrics["nearest_neighbor/rung_0"] < 1
"""


def test_metric_one_file_and_one_entry_are_enough(tmp_path: Path) -> None:
    """The example is evaluated, searched, selected and documented."""
    root = PAGE.parents[1]
    for package in ("vlae", "jobs", "pipeline"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    function, entry = (block for block in blocks() if "nearest_neighbor_score" in block)
    (tmp_path / "vlae" / "metrics" / "nearest_neighbor.py").write_text(function)
    registry = tmp_path / "jobs" / "evaluation" / "registry.py"
    head = "METRICS: tuple[Metric, ...] = ("
    registry.write_text(registry.read_text().replace(head, f"{head}\n{entry.strip()},"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE_METRIC], cwd=tmp_path, env=environment, check=True)


def test_source_example_is_sharded_and_read(tmp_path: Path) -> None:
    source = example("Stripes")(60, 8)
    write_dataset(source, tmp_path, BaseDataConfig(samples_per_task=20, validation_fraction=0.1, test_fraction=0.2))
    splits = [open_split(tmp_path, split) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == 60
    images, factors = splits[0].read(np.arange(len(splits[0])))
    assert images.shape[1:] == (1, 8, 8)
    edges = (images[:, 0, 0, 1:] != images[:, 0, 0, :-1]).sum(1)  # along the first row
    assert [int(count) for count in edges] == [[7, 3, 1][width] * (1 - way) for width, way in factors.tolist()]
    with tarfile.open(sorted(tmp_path.glob("*.tar"))[0]) as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"json", "npy"}


def test_model_example_trains_and_generates() -> None:
    torch.manual_seed(0)
    model: HierarchicalModel = example("LinearVae")(VaeConfig(latent_dims=(2,)), (1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    latents, mixing = torch.randn(256, 2, generator=generator), torch.randn(2, 64, generator=generator)
    images = torch.sigmoid(latents @ mixing).view(256, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(200):
        terms = model(images, model.noise(256, generator))
        loss = (terms.reconstruction + terms.kl.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 30
    with torch.no_grad():
        assert resample_rung(model, model.noise(3, generator), 0, 4, generator).shape == (3, 4, 1, 8, 8)
        fixed = [torch.zeros(3, 2)]
        assert torch.equal(model.prior(model.noise(3, generator), fixed)[0], fixed[0])
