"""Construction of a model from its settings."""

import bisect

import torch

from vlae.config import (
    AnyModelConfig,
    BaseModelConfig,
    BaseStackedConfig,
    HvaeConfig,
    LvaeConfig,
    VaeConfig,
    VlaeConfig,
)
from vlae.models.architectures import ArchitectureSpec, mlp, pyramid
from vlae.models.base import HierarchicalModel
from vlae.models.layers import ImageShape
from vlae.models.reference_architectures import large, medium, provlae, small
from vlae.models.stacked import Hvae, Lvae
from vlae.models.vlae import Vlae

# Each architecture, and the number of rungs for which a stacked VAE builds it: that of a published one, and otherwise
# 1, the whole trunk. Its dense layers have the units of the stack's bottom rung.
_NETWORKS = {
    "pyramid": (pyramid, 1),
    "mlp": (mlp, 1),
    "small": (small, 3),
    "medium": (medium, 4),
    "large": (large, 4),
    "provlae": (provlae, 3),
}
_TOLERANCE = 0.05  # of match_params, relative
_SCALE_STEPS = 64  # a scale of the hidden layers is a multiple of 1 / 64

_StackedConfig = HvaeConfig | LvaeConfig | VaeConfig


def build_model(config: AnyModelConfig, image_shape: ImageShape, seed: int = 0) -> HierarchicalModel:
    """Return the model of a settings section with random weights, in training mode on the CPU.

    Args:
        config: Settings of one of the models.
        image_shape: (channels, height, width).
        seed: Random seed for the weights; the global random state is not changed.

    Raises:
        ValueError: The architecture does not support such images or so many rungs, or no size has as many parameters
            as `match_params` asks for.

    Example:
        >>> build_model(VaeConfig(latent_dims=(5,), width=8), image_shape=(3, 32, 32)).latent_dims
        (5,)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # because torch.manual_seed would also seed the GPUs
        return _build(config, image_shape)


def num_parameters(config: AnyModelConfig, image_shape: ImageShape) -> int:
    """Return the number of trained parameters of `build_model(config, image_shape)` without allocating its weights."""
    with torch.device("meta"):
        return _build(config, image_shape).num_parameters


def _build(config: AnyModelConfig, image_shape: ImageShape) -> HierarchicalModel:
    if isinstance(config, BaseStackedConfig) and config.match_params:
        config = match_parameters(config, image_shape)
    architecture, rungs = _NETWORKS[config.network]
    hidden_dims = config.hidden_dims_per_rung
    if isinstance(config, BaseStackedConfig):
        hidden_dims = (hidden_dims[0],) * rungs
    network = architecture(ArchitectureSpec(image_shape, config.width, hidden_dims))
    match config:
        case VlaeConfig():
            return Vlae(config, image_shape, network)
        case LvaeConfig():
            return Lvae(config, image_shape, network)
        case HvaeConfig() | VaeConfig():
            return Hvae(config, image_shape, network)


def match_parameters(config: _StackedConfig, image_shape: ImageShape) -> _StackedConfig:
    """Return settings without `match_params` whose width and hidden_dims give as many parameters as the ladder has.

    The ladder is the VLAE of `match_latent_dims` with the same network, width and hidden_dims. The widest trunk that
    does not exceed it is taken, and the hidden layers make up for the rest.

    Raises:
        ValueError: No size comes within 5 %.
    """
    if len(config.hidden_dims) not in (1, len(config.match_latent_dims)):
        raise ValueError(
            f"model.match_latent_dims: {len(config.match_latent_dims)} rungs for {len(config.hidden_dims)} values of "
            "model.hidden_dims. Set one value of model.hidden_dims, or one per rung."
        )
    shared = config.model_dump(include=BaseModelConfig.model_fields.keys() - {"latent_dims"})
    target = num_parameters(VlaeConfig(latent_dims=config.match_latent_dims, **shared), image_shape)

    def resized(width: int, scale: int) -> _StackedConfig:
        hidden_dims = tuple(max(1, units * scale // _SCALE_STEPS) for units in config.hidden_dims)
        return config.model_copy(update={"match_params": False, "width": width, "hidden_dims": hidden_dims})

    def count(width: int, scale: int) -> int:
        return num_parameters(resized(width, scale), image_shape)

    width = config.width
    if config.network != "mlp":  # which has no convolutions
        width = max(1, bisect.bisect_right(range(1, 8 * width), target, key=lambda value: count(value, _SCALE_STEPS)))
    scales = range(1, 8 * _SCALE_STEPS)
    index = bisect.bisect_left(scales, target, key=lambda scale: count(width, scale))
    neighbors = scales[max(index - 1, 0) : index + 1]
    nearest = min(neighbors, key=lambda scale: abs(count(width, scale) - target))
    if abs(count(width, nearest) - target) > _TOLERANCE * target:
        raise ValueError(
            f"model.match_params: the ladder has {target:,} parameters and the nearest {config.name} "
            f"{count(width, nearest):,}. Set model.width and model.hidden_dims instead."
        )
    return resized(width, nearest)
