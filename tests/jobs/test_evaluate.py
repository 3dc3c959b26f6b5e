"""Scores of a model whose posterior and likelihood are known."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import open_split
from PIL import Image
from torch.distributions import Normal, kl_divergence

from jobs.config import EvaluateConfig
from jobs.data.dataset import ShardedDataset
from jobs.errors import UserError
from jobs.evaluate import Evaluation, evaluate_model
from jobs.evaluation.encode import encode
from jobs.evaluation.inputs import label_name
from jobs.evaluation.model_metrics import bound_scores, likelihood_scores
from jobs.evaluation.plots import heat_map, tile
from vlae.config import HvaeConfig, LvaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def data(digit_dataset: Path) -> ShardedDataset:
    return open_split(digit_dataset, "train")


def untrained(likelihood: str = "logistic", name: str = "vlae") -> HierarchicalModel:
    config = {"vlae": VlaeConfig, "hvae": HvaeConfig, "lvae": LvaeConfig}[name]
    return build_model(config(latent_dims=(2, 3), width=4, hidden_dims=8, likelihood=likelihood), (3, 16, 16)).eval()


QUICK = {"classifier_steps": 20, "iwae_samples": 2, "gibbs_steps": (1, 2)}


def evaluate(model: HierarchicalModel, data: ShardedDataset, **settings: object) -> Evaluation:
    return evaluate_model(model, data, data, EvaluateConfig(**(QUICK | settings)))


@pytest.fixture(scope="module")
def whole(data: ShardedDataset) -> Evaluation:
    """Of a ladder, on a few images; what one test of it has seen, another need not make again."""
    return evaluate(untrained(), data, num_images=60, iwae_samples=50)


def documented_names() -> set[str]:
    """Names in the first columns of the tables; `a/b`, `/c` stands for a/b and a/c, and so does `a/b`, `c` for c/b."""
    found = set()
    for line in DOCS.read_text().splitlines():
        names = re.findall(r"`([\w/]+)`", line.split("|")[1]) if line.startswith("| `") else []
        for name in names:
            head, _, rest = names[0].partition("/")
            found |= {name, f"{head}{name}" if name.startswith("/") else f"{name}/{rest}"}
    return found


def likelihoods(model: HierarchicalModel, data: ShardedDataset, count: int) -> dict[str, float]:
    codes = encode(model, data.images(np.arange(count)), torch.Generator().manual_seed(0))
    return likelihood_scores(codes, 3 * 16 * 16, discrete=True)


def test_elbo_and_its_terms(data: ShardedDataset) -> None:
    """The ELBO again, by torch.distributions and float64 from the model's own encoder and decoder."""
    model = untrained("gaussian")
    scores = evaluate(model, data, num_images=1000).scores
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


def test_bernoulli_has_no_bits_of_8_bit_data(data: ShardedDataset) -> None:
    codes = encode(untrained("bernoulli"), data.images(np.arange(15)), torch.Generator().manual_seed(0))
    assert "bits_per_dim" in likelihood_scores(codes, 768, discrete=True)
    assert "bits_per_dim" not in likelihood_scores(codes, 768, discrete=False)


def test_under_a_flat_prior_a_latent_is_in_use_when_it_costs_more_than_an_idle_one(data: ShardedDataset) -> None:
    config = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=8, prior_shape=8)
    model = build_model(config, (3, 16, 16)).eval()
    with torch.no_grad():
        model.heads[1].linear.weight.zero_()
        model.heads[1].linear.bias.zero_()
        model.heads[1].linear.bias[3:] = -0.26  # the nearest Gaussian has a sigma of .768
    scores = likelihoods(model, data, 150)
    assert scores["kl/rung_1"] == pytest.approx(3 * model.collapsed_kl, abs=1e-3)
    assert scores["kl/rung_1"] > 0.5
    assert scores["active_units/rung_1"] == 0
    assert scores["active_units/rung_0"] == 2


@pytest.mark.parametrize("name", ["vlae", "hvae", "lvae"])
def test_codes_do_not_depend_on_the_batch(data: ShardedDataset, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.evaluation.encode.eval_batch_size", lambda device: 48)
    model, images = untrained(name=name), data.images(np.arange(150))
    few, many = (encode(model, images[:count], torch.Generator().manual_seed(0)) for count in (40, 150))
    for part, whole in zip(few.means, many.means, strict=True):
        np.testing.assert_allclose(part, whole[:40], atol=1e-5)
    assert [part.shape for part in many.samples] == [(150, 2), (150, 3)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_evaluation(data: ShardedDataset, whole: Evaluation) -> None:
    again, other = (evaluate(untrained(), data, num_images=60, iwae_samples=50, seed=seed) for seed in (0, 1))
    first = whole
    assert first.scores == again.scores
    assert first.figures == again.figures
    assert first.explorer == again.explorer
    assert first.scores != other.scores
    pictures = {"blocks", "manifolds", "reconstructions", "samples", "gibbs"}
    assert set(first.figures) == pictures | {"rates", "information", "gibbs_curve"}
    for png in first.figures.values():
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.width > 200


def test_a_collapsed_rung_is_seen(data: ShardedDataset) -> None:
    model = untrained()
    with torch.no_grad():
        model.heads[1].linear.weight.zero_()
        model.heads[1].linear.bias.zero_()  # its posterior is the prior
    scores = likelihoods(model, data, 150)
    assert scores["kl/rung_1"] == pytest.approx(0, abs=1e-6)
    assert scores["active_units/rung_1"] == 0
    assert scores["active_units/rung_0"] == 2


@pytest.mark.slow
def test_every_measure_has_its_scores(data: ShardedDataset) -> None:
    model = untrained(name="lvae")
    scores = evaluate(model, data, num_images=150).scores
    for rung in (0, 1):
        assert 0 <= scores[f"information/rung_{rung}/digit"] <= 1
        assert -1 <= scores[f"probe_drop/rung_{rung}/hue"] <= 1
        assert 0 <= scores[f"class_flip_rate/rung_{rung}"] <= 1
    assert scores["complexity/hue"] < scores["complexity/digit"]
    assert scores["gibbs_distance/step_2"] > scores["gibbs_distance/step_0"]
    assert scores["top_k_mse/2"] > 0
    assert 0 <= scores["classifier_accuracy"] <= 1
    assert scores["num_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_bound_of_many_samples_is_above_that_of_one(data: ShardedDataset, whole: Evaluation) -> None:
    scores = whole.scores
    assert scores["iwae_bound"] > scores["iw_bound_of_one"]
    assert scores["iw_bound_of_one"] == pytest.approx(scores["elbo"], rel=0.02)
    images = data.images(np.arange(2)).float() / 255
    assert bound_scores(untrained(), images, 0, torch.Generator()) == {}


def test_the_label_can_be_chosen_and_must_exist(data: ShardedDataset) -> None:
    with pytest.raises(
        UserError, match=r"evaluate.label_factor=color is no factor of this dataset; its factors: hue, "
    ):
        evaluate(untrained(), data, num_images=60, label_factor="color")
    assert [label_name(wanted, ["font", "digit", "class"]) for wanted in ("", "font")] == ["digit", "font"]
    assert label_name("", ["hue"]) is None


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


@pytest.mark.parametrize("count", [10, 19])
def test_few_images_have_the_scores_that_make_sense(data: ShardedDataset, count: int) -> None:
    scores = evaluate(untrained(), data, num_images=count).scores
    assert "elbo" in scores
    assert not [name for name in scores if name.startswith(("gibbs", "probe/", "complexity"))]


def test_a_model_that_is_broken_is_said_to_be(data: ShardedDataset) -> None:
    model = untrained()
    with torch.no_grad():
        model.heads[0].linear.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite on the test split"):
        evaluate(model, data, num_images=10)


def test_every_score_is_documented(whole: Evaluation) -> None:
    factors = "hue|hue_offset|luminance|contrast|scale|rotation|shear|x|y|neighbors|font|digit"
    general = set()
    for name in [*whole.scores, "udr", "few_labels/1000"]:
        written = re.sub(rf"/({factors})$", "/FACTOR", re.sub(r"rung_\d+", "rung_l", name))
        general.add(re.sub(r"^top_k_mse/\d+", "top_k_mse/k", re.sub(r"step_[1-9]\d*", "step_n", written)))
    assert sorted(general - documented_names()) == []
