"""The evaluation of models whose posterior and likelihood are known."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import local, open_split, write_dataset
from helpers.evaluation import evaluate_model
from PIL import Image
from torch.distributions import Normal, kl_divergence

from jobs.data.dataset import ShardedDataset
from jobs.data.sources.image_folder import ImagesConfig
from jobs.errors import UserError
from jobs.evaluate import Evaluation
from jobs.evaluation.code_metrics import compute_metrics
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.encode import encode
from jobs.evaluation.inputs import Sample, encode_sample, label_name, sample
from jobs.evaluation.model_metrics import bounds, likelihood_terms
from jobs.evaluation.registry import METRICS
from vlae.config import HvaeConfig, LvaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model


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
    """Return the evaluation of an untrained ladder on a few images, shared by several tests."""
    return evaluate(untrained(), data, num_images=60, iwae_samples=50)


def likelihood_metrics(model: HierarchicalModel, data: ShardedDataset, count: int) -> dict[str, float]:
    images, factors = data.read(np.arange(count))
    encoded = encode_sample(model, Sample(images, factors, []), torch.Generator().manual_seed(0), seed=0)
    return compute_metrics([metric for metric in METRICS if metric.group == "likelihood"], encoded)


def test_evaluation_elbo_terms_match_torch_distributions(data: ShardedDataset) -> None:
    """The ELBO equals that of torch.distributions in float64, from the model's own encoder and decoder."""
    model = untrained("gaussian")
    metrics = evaluate(model, data, num_images=1000).metrics
    images = data.images(np.arange(len(data))).float() / 255
    with torch.no_grad():
        posteriors = model.infer(images, model.noise(len(images), torch.Generator().manual_seed(5))).posteriors
        kl = [kl_divergence(Normal(q.mean, q.log_sigma.exp()), Normal(0.0, 1.0)).mean(0) for q in posteriors]
        latents = [q.mean + q.log_sigma.exp() * torch.randn_like(q.mean) for q in posteriors]
        p = Normal(model.mean_image(latents).double(), 0.1)
        reconstruction = (math.log(255) - p.log_prob(images.double())).sum((1, 2, 3)).mean().item()
    for rung, dims in enumerate(kl):
        assert metrics[f"kl/rung_{rung}"] == pytest.approx(dims.sum().item(), rel=1e-4)
        assert metrics[f"active_units/rung_{rung}"] == (dims > 0.01).sum().item()
    assert metrics["reconstruction"] == pytest.approx(reconstruction, rel=0.01)
    assert metrics["kl"] == pytest.approx(metrics["kl/rung_0"] + metrics["kl/rung_1"])
    assert metrics["elbo"] == pytest.approx(-metrics["reconstruction"] - metrics["kl"])
    assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / (16 * 16 * 3 * math.log(2)))


def test_likelihood_terms_bernoulli_has_no_bits_per_dim(data: ShardedDataset) -> None:
    codes = encode(untrained("bernoulli"), data.images(np.arange(15)), torch.Generator().manual_seed(0))
    assert "bits_per_dim" in likelihood_terms(codes, 768, discrete=True)
    assert "bits_per_dim" not in likelihood_terms(codes, 768, discrete=False)


def test_active_units_flat_prior_subtracts_collapsed_kl(data: ShardedDataset) -> None:
    config = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=8, prior_shape=8)
    model = build_model(config, (3, 16, 16)).eval()
    with torch.no_grad():
        model.heads[1].linear.weight.zero_()
        model.heads[1].linear.bias.zero_()
        model.heads[1].linear.bias[3:] = -0.26  # the nearest Gaussian has a sigma of .768
    metrics = likelihood_metrics(model, data, 150)
    assert metrics["kl/rung_1"] == pytest.approx(3 * model.collapsed_kl, abs=1e-3)
    assert metrics["kl/rung_1"] > 0.5
    assert metrics["active_units/rung_1"] == 0
    assert metrics["active_units/rung_0"] == 2


@pytest.mark.parametrize("name", ["vlae", "hvae", "lvae"])
def test_encode_means_do_not_depend_on_batch(data: ShardedDataset, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.evaluation.encode.eval_batch_size", lambda device: 48)
    model, images = untrained(name=name), data.images(np.arange(150))
    few, many = (encode(model, images[:count], torch.Generator().manual_seed(0)) for count in (40, 150))
    for first, second in zip(few.means, many.means, strict=True):
        np.testing.assert_allclose(first, second[:40], atol=1e-5)
    assert [rung.shape for rung in many.samples] == [(150, 2), (150, 3)]


@pytest.mark.slow
def test_evaluation_same_seed_is_identical(data: ShardedDataset, whole: Evaluation) -> None:
    repeat, other = (evaluate(untrained(), data, num_images=60, iwae_samples=50, seed=seed) for seed in (0, 1))
    assert whole.metrics == repeat.metrics
    assert whole.figures == repeat.figures
    assert whole.explorer == repeat.explorer
    assert whole.metrics != other.metrics
    pictures = {"blocks", "manifolds", "reconstructions", "samples", "gibbs"}
    assert set(whole.figures) == pictures | {"rates", "information", "gibbs_curve"}
    for png in whole.figures.values():
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.width > 200


def test_active_units_collapsed_rung_is_zero(data: ShardedDataset) -> None:
    model = untrained()
    with torch.no_grad():
        model.heads[1].linear.weight.zero_()
        model.heads[1].linear.bias.zero_()  # its posterior is the prior
    metrics = likelihood_metrics(model, data, 150)
    assert metrics["kl/rung_1"] == pytest.approx(0, abs=1e-6)
    assert metrics["active_units/rung_1"] == 0
    assert metrics["active_units/rung_0"] == 2


@pytest.mark.slow
def test_evaluation_lvae_metrics_are_in_range(data: ShardedDataset) -> None:
    model = untrained(name="lvae")
    metrics = evaluate(model, data, num_images=150).metrics
    for rung in (0, 1):
        assert 0 <= metrics[f"information/rung_{rung}/digit"] <= 1
        assert -1 <= metrics[f"probe_drop/rung_{rung}/hue"] <= 1
        assert 0 <= metrics[f"class_flip_rate/rung_{rung}"] <= 1
    assert metrics["complexity/hue"] < metrics["complexity/digit"]
    assert metrics["gibbs_distance/step_2"] > metrics["gibbs_distance/step_0"]
    assert metrics["top_k_mse/2"] > 0
    assert 0 <= metrics["classifier_accuracy"] <= 1
    assert metrics["num_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_bounds_more_samples_are_higher(data: ShardedDataset, whole: Evaluation) -> None:
    metrics = whole.metrics
    assert metrics["iwae_bound"] > metrics["iwae_bound_of_one"]
    assert metrics["iwae_bound_of_one"] == pytest.approx(metrics["elbo"], rel=0.02)
    images = data.images(np.arange(2)).float() / 255
    assert bounds(untrained(), images, 0, torch.Generator()) == {}


def test_label_name_unknown_factor_is_refused(data: ShardedDataset) -> None:
    with pytest.raises(UserError, match=r"evaluate\.label_factor=color"):
        evaluate(untrained(), data, num_images=60, label_factor="color")
    assert [label_name(name, ["class", "digit", "font"]) for name in ("", "font")] == ["digit", "font"]
    assert label_name("", ["hue"]) is None


def test_sample_has_the_factors_that_metrics_use(digit_dataset: Path) -> None:
    access = replace(local(digit_dataset), factors=("digit", "hue"))
    chosen, whole = (sample(ShardedDataset(access, "test"), 50, 3) for access in (access, local(digit_dataset)))
    assert chosen.names == ["hue", "digit"]
    assert len(whole.names) == 12
    columns = [whole.names.index(name) for name in chosen.names]
    np.testing.assert_array_equal(chosen.factors, whole.factors[:, columns])


def test_sample_leaves_out_identifiers(tmp_path: Path) -> None:
    rows = [f"{n}.png,{n % 2},{n % 3},{n}" for n in range(30)]
    (tmp_path / "factors.csv").write_text("\n".join(["file,number,kind,serial", *rows]))
    for n in range(30):
        Image.new("L", (8, 8), 8 * n).save(tmp_path / f"{n}.png")
    config = ImagesConfig(root=tmp_path, image_size=8, channels=1, test_fraction=0.3)
    manifest = write_dataset(config.open(), tmp_path / "shards", config)
    assert [factor.name for factor in manifest.factors] == ["number", "kind", "serial"]
    assert sample(open_split(tmp_path / "shards", "train"), 5, 0).names == ["number", "kind"]


@pytest.mark.parametrize("count", [10, 19])
def test_evaluation_few_images_skips_noisy_metrics(data: ShardedDataset, count: int) -> None:
    evaluation = evaluate(untrained(), data, num_images=count)
    computed = [metric for metric in METRICS if not metric.min_images]
    assert {"elbo", "effect/rung_0", "top_k_mse/2", "classifier_accuracy"} <= set(evaluation.metrics)
    assert all(any(metric.pattern.fullmatch(name) for metric in computed) for name in evaluation.metrics)
    assert "information" not in evaluation.figures


def test_evaluation_nan_weights_are_refused(data: ShardedDataset) -> None:
    model = untrained()
    with torch.no_grad():
        model.heads[0].linear.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="ELBO"):
        evaluate(model, data, num_images=10)


def test_evaluation_logs_registered_names_only(whole: Evaluation) -> None:
    """Every name matches an entry of the registry, and every entry that the data defines is logged."""
    logged = set()
    for name in whole.metrics:
        matches = [metric.name for metric in METRICS if metric.pattern.fullmatch(name)]
        if not matches:
            matches = [metric.name for metric in METRICS if metric.per_rung and name.startswith(f"{metric.name}/rung_")]
        assert len(matches) == 1, name
        logged |= set(matches)
    # UDR needs other models, the gap belongs to the search, and an untrained model reads and uses next to nothing.
    undefined = {"udr", "mean_color_gap", "upper_rung_gain", "rung_compactness", "centroid/FACTOR"}
    undefined |= {"centroid_complexity_spearman", "rung_modularity", "infoc", "infom"}
    assert {metric.name for metric in METRICS} - undefined <= logged
