"""The architectures: published sizes, shared layers and invalid images."""

import pytest

from vlae.config import BaseModelConfig, HvaeConfig, VlaeConfig
from vlae.models.factory import build_model, num_parameters

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
def test_reference_architectures_have_published_sizes(
    config: VlaeConfig, image_shape: tuple[int, int, int], millions: float
) -> None:
    assert num_parameters(config, image_shape) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("config", "image_shape", "keys"),
    [
        (VlaeConfig(network="small", latent_dims=(2, 2)), (1, 28, 28), r"model\.latent_dims.*model\.network=small"),
        (VlaeConfig(network="medium", latent_dims=(2,) * 4), (1, 28, 28), r"model\.network=medium.*28x28"),
        (VlaeConfig(network="large", latent_dims=(2,) * 5), (3, 64, 64), r"model\.latent_dims.*model\.network=large"),
        (VlaeConfig(network="provlae", latent_dims=(2, 2, 2)), (3, 36, 36), r"model\.network=provlae.*36x36"),
        (HvaeConfig(network="large"), (3, 20, 20), r"model\.network=large.*20x20"),
        (VlaeConfig(latent_dims=(2,)), (3, 31, 31), r"model\.network=pyramid.*31x31"),
    ],
)
def test_build_model_invalid_image_or_rungs_raises(
    config: BaseModelConfig, image_shape: tuple[int, int, int], keys: str
) -> None:
    with pytest.raises(ValueError, match=keys):
        build_model(config, image_shape)


def test_stacks_have_the_trunk_and_decoder_of_the_ladder() -> None:
    """Names and shapes are equal, except for the layers between a rung and trunk or decoder."""
    shape = (3, 32, 32)
    ladder = build_model(VlaeConfig(network="medium", latent_dims=(3, 3, 3, 6), width=4, hidden_dims=16), shape)
    stack = build_model(HvaeConfig(network="medium", latent_dims=(6, 4), width=4, hidden_dims=16), shape)
    of_ladder = {name: tuple(p.shape) for name, p in ladder.named_parameters()}
    of_stack = {name.removeprefix("encoder."): tuple(p.shape) for name, p in stack.named_parameters()}
    trunk = [name for name in of_ladder if name.startswith("trunk.")]
    assert trunk
    assert [of_stack[name] for name in trunk] == [of_ladder[name] for name in trunk]
    tops = [name for name in of_ladder if name.startswith(("decoder.top.", "decoder.output."))]
    assert len(tops) > 4
    assert [of_stack[name] for name in tops] == [of_ladder[name] for name in tops]
