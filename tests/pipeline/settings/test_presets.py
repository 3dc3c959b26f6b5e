"""Presets of published recipes: their sizes, and their losses against those of the reference codes."""

import math

import pytest
import torch

from pipeline.settings.parse import PRESETS, read_config
from vlae.likelihoods import Likelihood
from vlae.models.factory import build_model, num_parameters
from vlae.schedule import rung_schedule

SHAPES = {
    "mnist": (1, 28, 28),
    "svhn": (3, 32, 32),
    "celeba": (3, 64, 64),
    "dsprites": (1, 64, 64),
    "shapes3d": (3, 64, 64),
}


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("paper2017-mnist", 25.9),
        ("release-mnist", 25.9),
        ("paper2017-svhn", 18.5),
        ("release-svhn", 18.5),
        ("paper2017-celeba", 51.6),
        ("release-celeba", 51.6),
        ("provlae-dsprites", 5.71),
        ("provlae-shapes3d", 5.71),
    ],
)
def test_preset_has_the_published_parameter_count(preset: str, millions: float) -> None:
    config = read_config([f"preset={preset}"])
    assert num_parameters(config.model, SHAPES[config.data.name]) / 1e6 == pytest.approx(millions, rel=0.01)


def nll_increase(preset: str, error: float) -> float:
    """Return the increase of the negative log-likelihood by an error in every value, nats per image."""
    config = read_config([f"preset={preset}"])
    shape = SHAPES[config.data.name]
    likelihood = Likelihood(config.model.likelihood, shape[0], config.model.likelihood_scale)
    output, images = torch.zeros(1, *shape), torch.full((1, *shape), 0.5)
    return (likelihood.nll(output, images + error) - likelihood.nll(output, images)).item()


@pytest.mark.parametrize(
    ("preset", "squared", "absolute", "width"),
    [
        # Weight of the reference's squared or absolute error, and the width of its pixel range.
        ("paper2017-mnist", 8, 0, 1),
        ("paper2017-svhn", 16, 0, 1),
        ("paper2017-celeba", 16, 0, 2),
        ("release-mnist", 0, 8, 1),
        ("release-svhn", 0, 8, 1),
        ("release-celeba", 0, 0.5, 2),
    ],
)
def test_preset_loss_equals_the_reference(preset: str, squared: float, absolute: float, width: float) -> None:
    error = 0.2
    dimensions = math.prod(SHAPES[preset.partition("-")[2]])
    expected = dimensions * (squared * (width * error) ** 2 + absolute * width * error)
    assert nll_increase(preset, error) == pytest.approx(expected, rel=1e-4)
    config = read_config([f"preset={preset}"])
    constant = 15000 if squared else 2000
    weights = rung_schedule(config.objective, config.progressive, constant, len(config.model.latent_dims)).kl_weights
    assert weights == pytest.approx([1 - math.exp(-1)] * len(weights))


@pytest.mark.parametrize(
    ("preset", "beta", "inactive", "stages", "images", "epochs", "batch"),
    [
        ("provlae-dsprites", 1, 0.5, 3, 737_280 * 0.85, 30, 128),
        ("provlae-shapes3d", 8, 0.5, 3, 480_000 * 0.85, 15, 100),
        ("provlae-celeba", 1, 0.1, 4, 162_770, 5, 128),
    ],
)
def test_progressive_preset_has_the_published_stages(
    preset: str, beta: float, inactive: float, stages: int, images: float, epochs: int, batch: int
) -> None:
    config = read_config([f"preset={preset}"])
    assert config.train.batch_size == batch
    assert config.progressive.stage_steps == pytest.approx(images * epochs / batch, rel=0.01)
    assert config.train.steps == pytest.approx(stages * config.progressive.stage_steps, rel=0.01)
    first = rung_schedule(config.objective, config.progressive, 0, stages)
    last = rung_schedule(config.objective, config.progressive, config.train.steps - 1, stages)
    assert first.kl_weights == [inactive] * (stages - 1) + [beta]
    assert last.kl_weights == [beta] * stages
    assert last.output_gates == [1] * stages


@pytest.mark.parametrize("path", sorted(PRESETS.glob("laptop-*.yaml")), ids=lambda path: path.stem)
def test_laptop_preset_is_the_same_network_but_smaller(path: object) -> None:
    small = read_config([f"preset={path.stem}"])
    name = path.stem.removeprefix("laptop-")
    full = read_config([f"preset={name if '-' in name else f'release-{name}'}"])
    assert (small.model.name, small.model.network, small.data.name) == (
        full.model.name,
        full.model.network,
        full.data.name,
    )
    assert small.model.latent_dims == full.model.latent_dims
    assert small.train.steps < full.train.steps / 5
    shape = SHAPES[small.data.name]
    parameters = num_parameters(small.model, shape)
    assert parameters < 4e6
    model = build_model(small.model, shape)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters
