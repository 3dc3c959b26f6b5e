"""Variational ladder autoencoders: models, objectives, disentanglement metrics and latent traversals.

Functions and modules of tensors and arrays, without files or network. `vlae.models` has the interface of all models.

Example:
    >>> import vlae
    >>> model = vlae.build_model(vlae.VlaeConfig(latent_dims=(2, 2, 4), width=8), image_shape=(3, 32, 32), seed=0)
    >>> model.latent_dims
    (2, 2, 4)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlae.config import HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VaeConfig, VlaeConfig

if TYPE_CHECKING:
    from vlae import metrics, models
    from vlae.models.factory import build_model

__all__ = [
    "HvaeConfig",
    "LvaeConfig",
    "ObjectiveConfig",
    "ProgressiveConfig",
    "VaeConfig",
    "VlaeConfig",
    "build_model",
    "metrics",
    "models",
]


def __getattr__(name: str) -> Any:
    """Return what needs torch, imported on first use, because the command imports `vlae.config` to check settings."""
    if name == "build_model":
        return import_module("vlae.models").build_model
    if name in ("metrics", "models"):
        return import_module(f"vlae.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
