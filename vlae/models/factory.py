"""From settings to a model."""

import bisect

import torch

from vlae.config import AnyModelConfig, BaseStackedConfig, HvaeConfig, LvaeConfig, VaeConfig, VlaeConfig
from vlae.models.architectures import ArchitectureSpec, Network, mlp, pyramid
from vlae.models.base import HierarchicalModel
from vlae.models.reference_architectures import large, medium, provlae, small
from vlae.models.stacked import Hvae, Lvae
from vlae.models.vlae import Vlae

_NETWORKS = {"pyramid": pyramid, "mlp": mlp, "small": small, "medium": medium, "large": large, "provlae": provlae}
# How many rungs the network of a stack is made for: all that a published one has; one, at the end of the
# whole pyramid. Its dense layers have the units of the stack's bottom rung.
_STACK_RUNGS = {"pyramid": 1, "mlp": 1, "small": 3, "medium": 4, "large": 4, "provlae": 3}
_TOLERANCE = 0.05
_FINE = 64  # steps of the hidden layers' scale within 1

ImageShape = tuple[int, int, int]
_StackConfig = HvaeConfig | LvaeConfig | VaeConfig


def build_model(config: AnyModelConfig, image_shape: ImageShape, seed: int = 0) -> HierarchicalModel:
    """The model that `config` names, with weights that depend on `seed` alone.

    Args:
        config: a model section.
        image_shape: (channels, height, width).
        seed: of the initial weights; the global random state is left as it was.

    Raises:
        ValueError: the network is not made for such images or so many rungs, or no width has as many
            parameters as `match_params` wants.
    """
    if isinstance(config, BaseStackedConfig) and config.match_params:
        config = match_parameters(config, image_shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' too
        return _module(config, image_shape)


def _module(config: AnyModelConfig, image_shape: ImageShape) -> HierarchicalModel:
    network = _network(config, image_shape)
    match config:
        case VlaeConfig():
            return Vlae(config, image_shape, network)
        case LvaeConfig():
            return Lvae(config, image_shape, network)
        case HvaeConfig() | VaeConfig():
            return Hvae(config, image_shape, network)


def _network(config: AnyModelConfig, image_shape: ImageShape) -> Network:
    rungs, units = len(config.latent_dims), config.units
    if isinstance(config, BaseStackedConfig):
        rungs = _STACK_RUNGS[config.network]
        units = (units[0],) * rungs
    return _NETWORKS[config.network](ArchitectureSpec(image_shape, rungs, config.width, units))


def num_parameters(config: AnyModelConfig, image_shape: ImageShape) -> int:
    """Trained parameters of the model, counted without making its weights.

    Raises:
        ValueError: as for `build_model`.
    """
    if isinstance(config, BaseStackedConfig) and config.match_params:
        config = match_parameters(config, image_shape)
    with torch.device("meta"):
        return _module(config, image_shape).num_parameters


def match_parameters(config: _StackConfig, image_shape: ImageShape) -> _StackConfig:
    """The section with width and hidden layers of a size that gives as many parameters as the ladder has.

    The ladder is the VLAE of `match_latent_dims` with the same network, width and hidden layers. The widest
    trunk that does not exceed it is taken, and the hidden layers make up the rest.

    Raises:
        ValueError: no size comes within 5 %.
    """
    shared = {
        name: getattr(config, name)
        for name in ("network", "width", "norm", "posterior_scale_link", "likelihood", "likelihood_scale")
    }
    if len(config.hidden_dims) not in (1, len(config.match_latent_dims)):
        raise ValueError(
            f"model.match_params: model.hidden_dims has {len(config.hidden_dims)} numbers and model.match_latent_dims "
            f"{len(config.match_latent_dims)} rungs; give one number, or as many rungs"
        )
    ladder = VlaeConfig(latent_dims=config.match_latent_dims, hidden_dims=config.hidden_dims, **shared)
    wanted = num_parameters(ladder, image_shape)
    free = config.model_copy(update={"match_params": False})

    def sized(width: int, scale: int) -> _StackConfig:
        hidden = tuple(max(1, units * scale // _FINE) for units in config.hidden_dims)
        return free.model_copy(update={"width": width, "hidden_dims": hidden})

    def count(width: int, scale: int) -> int:
        return num_parameters(sized(width, scale), image_shape)

    width = config.width
    if config.network != "mlp":  # which has no convolutions
        width = max(1, bisect.bisect_right(range(1, 8 * width), wanted, key=lambda value: count(value, _FINE)))
    scales = range(1, 8 * _FINE)
    place = bisect.bisect_left(scales, wanted, key=lambda scale: count(width, scale))
    candidates = [sized(width, scales[min(max(at, 0), len(scales) - 1)]) for at in (place - 1, place)]
    found = min(candidates, key=lambda section: abs(num_parameters(section, image_shape) - wanted))
    got = num_parameters(found, image_shape)
    if abs(got - wanted) > _TOLERANCE * wanted:
        raise ValueError(
            f"model.match_params: the ladder has {wanted:,} parameters, and the nearest {config.name} has {got:,}: "
            "set model.width and model.hidden_dims yourself"
        )
    return found
