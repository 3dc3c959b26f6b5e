"""Layers as data, and the modules that are made of them: the building blocks of every network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "batch", "none"]
Activation = Literal["leaky", "relu", "elu", "none"]
Shape = tuple[int, ...]  # (channels, height, width), or (features,)


@dataclass(frozen=True)
class Layer:
    """One layer with its normalization and activation.

    Args:
        kind: `conv`, `deconv` (transposed, doubles the size), `up` (nearest-neighbor doubling, then a
            convolution), or `dense` (flattens what it is given).
        units: output channels, or features.
        kernel: of the convolution, pixels.
        stride: of `conv`, 1 or 2.
        activation: after the normalization.
        plane: shape that the features of a `dense` layer are folded into, or None.
        bare: neither normalized nor activated: an output.
    """

    kind: Literal["conv", "deconv", "up", "dense"]
    units: int
    kernel: int = 4
    stride: int = 1
    activation: Activation = "leaky"
    to_feature_map: tuple[int, int, int] | None = None
    is_output: bool = False


Layers = tuple[Layer, ...]


def dense(units: int, count: int = 1, *, activation: Activation = "leaky") -> Layers:
    """`count` fully connected layers."""
    return (Layer("dense", units, activation=activation),) * count


def to_feature_map(shape: tuple[int, int, int], *, activation: Activation = "leaky", is_output: bool = False) -> Layer:
    """A fully connected layer whose output is folded into (channels, height, width)."""
    return Layer("dense", prod(shape), activation=activation, to_feature_map=shape, is_output=is_output)


def output_shape(layer: Layer, shape: Shape) -> Shape:
    """Shape of what a layer makes of one sample of `shape`.

    Raises:
        ValueError: a convolution without a plane, or one that would halve an odd size.
    """
    if layer.kind == "dense":
        return layer.to_feature_map or (layer.units,)
    if len(shape) != 3:
        raise ValueError(f"a {layer.kind} layer needs (channels, height, width), got {shape}")
    _, height, width = shape
    if layer.stride == 2 and (height % 2 or width % 2):
        raise ValueError(f"features of {height}x{width} pixels cannot be halved")
    scale = 2 if layer.kind in ("deconv", "up") else 1
    return layer.units, height * scale // layer.stride, width * scale // layer.stride


def normalization(norm: Norm, channels: int, *, planar: bool) -> nn.Module:
    """After a hidden layer. Group norm (layer norm of a vector) has no running state, so workers cannot disagree."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels) if planar else nn.BatchNorm1d(channels)
    if not planar:
        return nn.LayerNorm(channels)
    # About eight channels a group.
    groups = max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class _Nearest(nn.Module):
    """Doubling by nearest neighbor: a transposed convolution leaves checkerboards."""

    def forward(self, features: Tensor) -> Tensor:
        return F.interpolate(features, scale_factor=2.0, mode="nearest")


def _linear_part(layer: Layer, shape: Shape) -> list[nn.Module]:
    """The layer's own weights, after what they need before them."""
    if layer.kind == "dense":
        flatten = [nn.Flatten()] if len(shape) > 1 else []
        return [*flatten, nn.Linear(prod(shape), layer.units)]
    channels, kernel = shape[0], layer.kernel
    if layer.kind == "deconv":
        return [nn.ConvTranspose2d(channels, layer.units, 4, 2, 1)]
    if layer.kind == "up":
        return [_Nearest(), nn.Conv2d(channels, layer.units, kernel, 1, kernel // 2)]
    if layer.stride == 2 or kernel % 2:
        return [nn.Conv2d(channels, layer.units, kernel, layer.stride, (kernel - 1) // 2)]
    # An even kernel at stride 1 keeps the size with one row and column more after than before ("same").
    before, after = (kernel - 1) // 2, kernel // 2
    return [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(channels, layer.units, kernel)]


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "none": nn.Identity,
}


def build_layers(layers: Sequence[Layer], shape: Shape, norm: Norm) -> tuple[nn.Sequential, Shape]:
    """Modules for samples of `shape`, and the shape that they give.

    Raises:
        ValueError: the layers do not fit the shape.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        out = output_shape(layer, shape)
        modules += _linear_part(layer, shape)
        if not layer.is_output:
            # A dense layer is normalized as the vector it makes, also where that is folded into a plane next.
            modules.append(normalization(norm, layer.units, planar=layer.kind != "dense"))
            modules.append(_ACTIVATIONS[layer.activation]())
        if layer.to_feature_map:
            modules.append(nn.Unflatten(1, layer.to_feature_map))
        shape = out
    return nn.Sequential(*modules), shape
