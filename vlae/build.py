"""From settings to a model."""

import torch

from vlae.config import HvaeConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.models.hvae import Hvae
from vlae.models.vlae import Vlae


def build_model(config: VlaeConfig | HvaeConfig, image_shape: tuple[int, int, int], seed: int = 0) -> HierarchicalModel:
    """The model that `config` names, with weights that depend on `seed` alone.

    Args:
        config: a model section.
        image_shape: (channels, height, width).
        seed: of the initial weights; the global random state is left as it was.

    Raises:
        ValueError: images of that size cannot be halved once.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: HierarchicalModel
        match config:
            case VlaeConfig():
                model = Vlae(config, image_shape)
            case HvaeConfig():
                model = Hvae(config, image_shape)
    return model
