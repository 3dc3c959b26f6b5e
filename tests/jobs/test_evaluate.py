"""Scores of a model whose posterior and likelihood are known."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import open_split
from PIL import Image
from torch.distributions import Normal, kl_divergence

from jobs.config import EvaluateConfig
from jobs.data.split import ShardedSplit
from jobs.evaluate import encode, evaluate_model
from jobs.figures import heat_map, tile
from vlae.build import build_model
from vlae.config import HvaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel


@pytest.fixture(scope="module")
def data(digit_dataset: Path) -> ShardedSplit:
    return open_split(digit_dataset, "train")


def untrained(likelihood: str = "logistic", name: str = "vlae") -> HierarchicalModel:
    config = {"vlae": VlaeConfig, "hvae": HvaeConfig}[name]
    return build_model(config(latent_dims=(2, 3), width=4, hidden=8, likelihood=likelihood), (3, 16, 16)).eval()


def test_elbo_and_its_terms(data: ShardedSplit) -> None:
    """The ELBO again, by torch.distributions and float64 from the model's own encoder and decoder."""
    model = untrained("gaussian")
    scores = evaluate_model(model, data, EvaluateConfig(num_images=1000)).scores
    images = data.images(np.arange(len(data))).float() / 255
    with torch.no_grad():
        posteriors = model.infer(images, model.noise(len(images), torch.Generator().manual_seed(5))).posteriors
        kl = [kl_divergence(Normal(q.mean, q.log_sigma.exp()), Normal(0.0, 1.0)).mean(0) for q in posteriors]
        latents = [q.mean + q.log_sigma.exp() * torch.randn_like(q.mean) for q in posteriors]
        p = Normal(model.mean_image(latents).double(), 0.1)
        reconstruction = (math.log(255) - p.log_prob(images.double())).sum((1, 2, 3)).mean().item()
    for rung, dims in enumerate(kl):
        assert scores[f"kl/rung_{rung}"] == pytest.approx(dims.sum().item(), rel=1e-4)
        assert scores[f"active_units/rung_{rung}"] == (dims > 0.01).sum().item()
    assert scores["reconstruction"] == pytest.approx(reconstruction, rel=0.01)
    assert scores["kl"] == pytest.approx(scores["kl/rung_0"] + scores["kl/rung_1"])
    assert scores["elbo"] == pytest.approx(-scores["reconstruction"] - scores["kl"])
    assert scores["bits_per_dim"] == pytest.approx(-scores["elbo"] / (16 * 16 * 3 * math.log(2)))


def test_bernoulli_has_no_bits_of_8_bit_data(data: ShardedSplit) -> None:
    assert "bits_per_dim" not in evaluate_model(untrained("bernoulli"), data, EvaluateConfig(num_images=50)).scores


@pytest.mark.parametrize("name", ["vlae", "hvae"])
def test_codes_do_not_depend_on_the_batch(data: ShardedSplit, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.evaluate._BATCH", 64)
    model, images = untrained(name=name), data.images(np.arange(150))
    few, many = (encode(model, images[:count], torch.Generator().manual_seed(0)) for count in (40, 150))
    for part, whole in zip(few.means, many.means, strict=True):
        np.testing.assert_allclose(part, whole[:40], atol=1e-5)
    assert [part.shape for part in many.samples] == [(150, 2), (150, 3)]


def test_the_same_seed_gives_the_same_evaluation(data: ShardedSplit) -> None:
    first, again, other = (
        evaluate_model(untrained(), data, EvaluateConfig(num_images=60, seed=seed)) for seed in (0, 0, 1)
    )
    assert first.scores == again.scores
    assert first.figures == again.figures
    assert first.scores != other.scores
    assert set(first.figures) == {"blocks", "reconstructions", "samples", "information"}
    for png in first.figures.values():
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.width > 200


def test_a_collapsed_rung_is_seen(data: ShardedSplit) -> None:
    model = untrained()
    with torch.no_grad():
        model.rungs[1][-1].weight.zero_()
        model.rungs[1][-1].bias.zero_()  # its posterior is the prior
    scores = evaluate_model(model, data, EvaluateConfig(num_images=200)).scores
    assert scores["kl/rung_1"] == pytest.approx(0, abs=1e-6)
    assert scores["active_units/rung_1"] == 0
    assert scores["active_units/rung_0"] == 2


def test_tiles_lie_where_they_should() -> None:
    images = torch.arange(6).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 5) / 10
    sheet = tile(images)
    assert sheet.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    assert sheet[0].min() == 255
    assert (sheet[6:10, 13:18] == round(0.5 * 255)).all()


def test_heat_map_shows_what_is_missing() -> None:
    values = np.array([[0.0, np.nan], [0.5, 1.0]])
    with Image.open(io.BytesIO(heat_map(values, ["rung 1", "rung 0"], ["a", "b"], "t"))) as picture:
        assert picture.height > 100
