"""Layers: shapes and normalization."""

import pytest
import torch

from vlae.config import VlaeConfig
from vlae.models.factory import build_model
from vlae.models.layers import Layer, build_layers, dense, to_feature_map


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("conv", 6, 4, 2), (6, 4, 4)),
        (Layer("conv", 6, 4, 1), (6, 8, 8)),
        (Layer("conv", 6, 3), (6, 8, 8)),
        (Layer("deconv", 6), (6, 16, 16)),
        (Layer("up", 6, 3), (6, 16, 16)),
        (Layer("dense", 6, activation="elu"), (6,)),
        (to_feature_map((2, 3, 5), activation="relu"), (2, 3, 5)),
        (Layer("conv", 6, is_output=True), (6, 8, 8)),
    ],
)
def test_build_layers_output_has_the_returned_shape(layer: Layer, expected: tuple[int, ...], norm: str) -> None:
    modules, shape = build_layers([layer], (3, 8, 8), norm)
    assert shape == expected
    assert modules(torch.zeros(2, 3, 8, 8)).shape == (2, *shape)


def test_build_layers_invalid_shapes_raise() -> None:
    with pytest.raises(ValueError, match="7x8"):
        build_layers([Layer("conv", 4, 4, 2)], (1, 7, 8), "none")
    with pytest.raises(ValueError, match="conv layer"):
        build_layers([*dense(5), Layer("conv", 4)], (1, 8, 8), "none")


def test_batch_norm_in_evaluation_ignores_the_batch() -> None:
    model = build_model(VlaeConfig(width=4, hidden_dims=8, norm="batch"), (3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 32, generator=generator)
    for _ in range(3):
        model(images, model.noise(8, generator))
    model.eval()
    noise = model.noise(8, generator)
    together, alone = model(images, noise), model(images[:1], [values[:1] for values in noise])
    torch.testing.assert_close(together.reconstruction[:1], alone.reconstruction)
    torch.testing.assert_close(together.kl[:1], alone.kl)
