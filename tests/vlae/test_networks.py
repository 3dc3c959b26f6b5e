"""The networks: published sizes, shapes that fit, and totals that agree."""

import pytest
import torch

from vlae.config import BaseModelConfig, HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.models.factory import build_model, match_parameters, num_parameters
from vlae.models.layers import Layer, build_layers, dense, output_shape, to_feature_map

AUTHORS = {"width": 64, "hidden_dims": 1024, "norm": "batch", "posterior_scale_link": "sigmoid"}
PROVLAE = {"network": "provlae", "width": 32, "hidden_dims": 256, "norm": "batch"}


@pytest.mark.parametrize(
    ("config", "image_shape", "millions"),
    [
        (VlaeConfig(network="small", latent_dims=(2, 2, 2), **AUTHORS), (1, 28, 28), 25.9),
        (VlaeConfig(network="medium", latent_dims=(5, 5, 5, 10), **AUTHORS), (3, 32, 32), 18.5),
        (VlaeConfig(network="large", latent_dims=(10, 10, 10, 10), **AUTHORS), (3, 64, 64), 51.6),
        (VlaeConfig(network="large", latent_dims=(20, 20, 20, 40), **AUTHORS), (3, 64, 64), 54.4),
        (VlaeConfig(latent_dims=(2, 2, 2), **PROVLAE), (1, 64, 64), 5.71),
        (VlaeConfig(latent_dims=(3, 3, 3), **PROVLAE), (3, 64, 64), 5.71),
    ],
)
def test_published_sizes(config: VlaeConfig, image_shape: tuple[int, int, int], millions: float) -> None:
    assert num_parameters(config, image_shape) / 1e6 == pytest.approx(millions, rel=0.01)


def test_counting_makes_no_weights_and_agrees_with_the_model() -> None:
    config = VlaeConfig(width=4, hidden_dims=16)
    built = build_model(config, (3, 32, 32))
    assert num_parameters(config, (3, 32, 32)) == sum(p.numel() for p in built.parameters() if p.requires_grad)


@pytest.mark.parametrize("section", [HvaeConfig, LvaeConfig, VaeConfig])
@pytest.mark.parametrize("network", ["pyramid", "mlp", "medium"])
@pytest.mark.parametrize("width", [8, 24])
def test_matched_models_have_the_ladders_parameters(section: type, network: str, width: int) -> None:
    config = section(network=network, width=width, match_params=True, match_latent_dims=(4, 4, 4, 10))
    wanted = num_parameters(VlaeConfig(network=network, width=width, latent_dims=(4, 4, 4, 10)), (3, 32, 32))
    built = build_model(config, (3, 32, 32))
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == pytest.approx(wanted, rel=0.05)
    assert match_parameters(config, (3, 32, 32)).latent_dims == config.latent_dims


def test_the_ladder_to_match_has_the_same_hidden_layers() -> None:
    sizes = {"network": "mlp", "hidden_dims": (64, 32, 16)}
    config = LvaeConfig(latent_dims=(6, 4, 2), match_params=True, match_latent_dims=(3, 3, 6), **sizes)
    wanted = num_parameters(VlaeConfig(latent_dims=(3, 3, 6), **sizes), (1, 28, 28))
    assert num_parameters(config, (1, 28, 28)) == pytest.approx(wanted, rel=0.05)
    with pytest.raises(ValueError, match=r"hidden_dims has 3 numbers and model.match_latent_dims 2 rungs"):
        num_parameters(config.model_copy(update={"match_latent_dims": (3, 3)}), (1, 28, 28))


def test_what_cannot_be_matched_is_refused() -> None:
    config = VaeConfig(latent_dims=(4096,), width=1, hidden_dims=1, match_params=True, match_latent_dims=(1, 1))
    with pytest.raises(ValueError, match=r"match_params: the ladder has .* set model.width"):
        build_model(config, (1, 28, 28))


@pytest.mark.parametrize(
    ("config", "image_shape", "message"),
    [
        (VlaeConfig(network="small", latent_dims=(2, 2)), (1, 28, 28), "network=small has 3 rungs"),
        (VlaeConfig(network="medium", latent_dims=(2,) * 4), (1, 28, 28), "multiples of 8, these have 28x28"),
        (VlaeConfig(network="large", latent_dims=(2,) * 5), (3, 64, 64), "network=large has 4 rungs"),
        (VlaeConfig(network="provlae", latent_dims=(2, 2, 2)), (3, 36, 36), "multiples of 16"),
        (HvaeConfig(network="large"), (3, 20, 20), "multiples of 16"),
        (VlaeConfig(latent_dims=(2,)), (3, 31, 31), "31x31 pixels cannot be halved"),
    ],
)
def test_what_a_network_is_not_made_for_is_named(
    config: BaseModelConfig, image_shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config, image_shape)


def test_the_stacks_use_the_ladders_trunk_and_decoder() -> None:
    """The same layers, name by name, but for those that a rung reads and joins with."""
    shape = (3, 32, 32)
    ladder = build_model(VlaeConfig(network="medium", latent_dims=(3, 3, 3, 6), width=4, hidden_dims=16), shape)
    stack = build_model(HvaeConfig(network="medium", latent_dims=(6, 4), width=4, hidden_dims=16), shape)
    of_ladder = {name: tuple(p.shape) for name, p in ladder.named_parameters()}
    of_stack = {name.removeprefix("encoder."): tuple(p.shape) for name, p in stack.named_parameters()}
    trunk = [name for name in of_ladder if name.startswith("trunk.")]
    assert trunk
    assert [of_stack[name] for name in trunk] == [of_ladder[name] for name in trunk]
    tops = [name for name in of_ladder if name.startswith(("decoder.top.", "decoder.finish."))]
    assert len(tops) > 4
    assert [of_stack[name] for name in tops] == [of_ladder[name] for name in tops]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize(
    "layer",
    [
        Layer("conv", 6, 4, 2),
        Layer("conv", 6, 4, 1),
        Layer("conv", 6, 3),
        Layer("deconv", 6),
        Layer("up", 6, 3),
        Layer("dense", 6, activation="elu"),
        to_feature_map((2, 3, 5), activation="relu"),
        Layer("conv", 6, is_output=True),
    ],
)
def test_layers_have_the_shapes_they_say(layer: Layer, norm: str) -> None:
    modules, shape = build_layers([layer], (3, 8, 8), norm)
    assert shape == output_shape(layer, (3, 8, 8))
    assert modules(torch.rand(2, 3, 8, 8)).shape == (2, *shape)


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="7x8 pixels cannot be halved"):
        build_layers([Layer("conv", 4, 4, 2)], (1, 7, 8), "none")
    with pytest.raises(ValueError, match="conv layer needs"):
        build_layers([*dense(5), Layer("conv", 4)], (1, 8, 8), "none")


def test_batch_norm_scores_an_image_alone_as_among_others() -> None:
    model = build_model(VlaeConfig(width=4, hidden_dims=8, norm="batch"), (3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 32, generator=generator)
    for _ in range(3):
        model(images, model.noise(8, generator))
    model.eval()
    noise = model.noise(8, generator)
    together, alone = model(images, noise), model(images[:1], [part[:1] for part in noise])
    torch.testing.assert_close(together.reconstruction[:1], alone.reconstruction)
    torch.testing.assert_close(together.kl[:1], alone.kl)
