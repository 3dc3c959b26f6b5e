"""The examples of docs/extending.md, as they stand there: run, and compared with what they should give."""

import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import open_split, write_dataset
from sklearn.neighbors import NearestNeighbors

from jobs.data.config import BaseDataConfig
from vlae.config import VaeConfig
from vlae.models.base import HierarchicalModel
from vlae.traversals import resample_rung

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def example(name: str) -> Any:
    """What an example of the page defines under a name."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        if re.search(rf"^(class|def) {name}\b", block, re.M):
            found: dict[str, Any] = {"__name__": __name__}
            exec(compile(block, str(PAGE), "exec"), found)
            return found[name]
    raise AssertionError(name)


def test_the_measure() -> None:
    score = example("nearest_neighbor_score")
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 4, (200, 2))
    nearest = NearestNeighbors(n_neighbors=2).fit(codes).kneighbors(codes, return_distance=False)[:, 1]
    assert score(codes, factors) == pytest.approx((factors == factors[nearest]).mean())
    assert score(factors + rng.normal(0, 0.01, factors.shape), factors) == 1


def test_the_source(tmp_path: Path) -> None:
    source = example("Stripes")(60, 8)
    write_dataset(source, tmp_path, BaseDataConfig(samples_per_task=20, validation_fraction=0.1, test_fraction=0.2))
    parts = [open_split(tmp_path, split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 60
    images, factors = parts[0].read(np.arange(len(parts[0])))
    assert images.shape[1:] == (1, 8, 8)
    turns = (images[:, 0, 0, 1:] != images[:, 0, 0, :-1]).sum(1)  # along the first row
    assert [int(count) for count in turns] == [[7, 3, 1][width] * (1 - way) for width, way in factors.tolist()]
    with tarfile.open(sorted(tmp_path.glob("*.tar"))[0]) as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"json", "npy"}


def test_the_model() -> None:
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
