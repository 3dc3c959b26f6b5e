"""The ladder against the flat module of the benchmarks, which shares no code with it."""

import pytest
import torch

from benchmarks.flat_vlae import FlatVlae, copy_weights
from vlae.config import ObjectiveConfig, VlaeConfig
from vlae.models.factory import build_model
from vlae.objective import objective_loss

DIMS, WIDTH, HIDDEN = (2, 3, 4, 5), 8, 16


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_vlae_loss_and_gradients_equal_the_flat_module(kl_weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    model = build_model(VlaeConfig(latent_dims=DIMS, width=WIDTH, hidden_dims=HIDDEN), (3, 64, 64), seed=2)
    flat = FlatVlae(WIDTH, 64, DIMS, HIDDEN)
    copy_weights(model, flat)
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=generator) / 255  # with 0 and 1
    noise = model.noise(3, generator)

    loss = objective_loss(model(images, noise), [kl_weight] * 4, ObjectiveConfig())
    loss.backward()
    expected = flat(images, noise, kl_weight)
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for (name, parameter), other in zip(model.named_parameters(), flat.parameters(), strict=True):
        scale = other.grad.norm().item()
        assert scale > 0, name
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_copy_weights_of_another_network_raises() -> None:
    model = build_model(VlaeConfig(latent_dims=DIMS, width=WIDTH, hidden_dims=HIDDEN), (3, 64, 64))
    with pytest.raises(ValueError, match="layers"):
        copy_weights(model, FlatVlae(2 * WIDTH, 64, DIMS, HIDDEN))
