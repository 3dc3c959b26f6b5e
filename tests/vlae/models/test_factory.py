"""Construction of models: seeds and numbers of parameters."""

import pytest
import torch
from helpers.small_models import CONFIGS

from vlae.config import HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.models.factory import build_model, match_parameters, num_parameters


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_build_model_depends_on_the_seed_alone(name: str) -> None:
    config = CONFIGS[name](latent_dims=(2,), width=4, hidden_dims=8)
    first = build_model(config, (1, 28, 28), seed=5).state_dict()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    again, other = (build_model(config, (1, 28, 28), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_num_parameters_agrees_with_the_model() -> None:
    config = VlaeConfig(width=4, hidden_dims=16)
    built = build_model(config, (3, 32, 32))
    assert num_parameters(config, (3, 32, 32)) == sum(p.numel() for p in built.parameters() if p.requires_grad)


@pytest.mark.parametrize("section", [HvaeConfig, LvaeConfig, VaeConfig])
@pytest.mark.parametrize("network", ["pyramid", "mlp", "medium"])
@pytest.mark.parametrize("width", [8, 24])
def test_match_params_gives_the_size_of_the_ladder(section: type, network: str, width: int) -> None:
    config = section(network=network, width=width, match_params=True, match_latent_dims=(4, 4, 4, 10))
    target = num_parameters(VlaeConfig(network=network, width=width, latent_dims=(4, 4, 4, 10)), (3, 32, 32))
    built = build_model(config, (3, 32, 32))
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == pytest.approx(target, rel=0.05)
    assert match_parameters(config, (3, 32, 32)).latent_dims == config.latent_dims


def test_match_params_with_units_per_rung_matches_them() -> None:
    sizes = {"network": "mlp", "hidden_dims": (64, 32, 16)}
    config = LvaeConfig(latent_dims=(6, 4, 2), match_params=True, match_latent_dims=(3, 3, 6), **sizes)
    target = num_parameters(VlaeConfig(latent_dims=(3, 3, 6), **sizes), (1, 28, 28))
    assert num_parameters(config, (1, 28, 28)) == pytest.approx(target, rel=0.05)
    with pytest.raises(ValueError, match=r"model\.match_latent_dims.*model\.hidden_dims"):
        num_parameters(config.model_copy(update={"match_latent_dims": (3, 3)}), (1, 28, 28))


def test_match_params_without_a_fitting_size_raises() -> None:
    config = VaeConfig(latent_dims=(4096,), width=1, hidden_dims=1, match_params=True, match_latent_dims=(1, 1))
    with pytest.raises(ValueError, match=r"model\.match_params.*model\.width"):
        build_model(config, (1, 28, 28))
