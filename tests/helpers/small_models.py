"""Small models of every kind, and a batch for each of them."""

from collections.abc import Callable
from functools import partial

import torch

from vlae.config import AnyModelConfig, HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model

CONFIGS: dict[str, Callable[..., AnyModelConfig]] = {
    "vlae": VlaeConfig,
    "hvae": HvaeConfig,
    "lvae": LvaeConfig,
    "vae": VaeConfig,
    "axes": partial(VlaeConfig, prior_shape=4),
}
STACKS = ["hvae", "lvae", "vae"]


def small(
    name: str, dims: tuple[int, ...] = (2, 3, 4), shape: tuple[int, int, int] = (3, 32, 32), **settings: object
) -> HierarchicalModel:
    """Return a model of `CONFIGS`; a flat VAE has the first of the dimensions."""
    dims = dims[:1] if name == "vae" else dims
    return build_model(CONFIGS[name](**{"latent_dims": dims, "width": 4, "hidden_dims": 16} | settings), shape, seed=1)


@torch.no_grad()
def perturb(model: HierarchicalModel, std: float) -> HierarchicalModel:
    """Add noise to all parameters, because learned priors start at N(0, I) with zero weights."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model


def batch(model: HierarchicalModel, count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return random images and noise for a model."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *model.image_shape, generator=generator), model.noise(count, generator)
