"""Layers as data, and the modules built from them: the building blocks of every architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import nn

Norm = Literal["group", "batch", "none"]
Activation = Literal["leaky", "relu", "elu"]
ImageShape = tuple[int, int, int]  # (channels, height, width)
Shape = tuple[int, ...]  # of one sample: (channels, height, width), or (features,)


@dataclass(frozen=True)
class Layer:
    """One layer with its normalization and activation.

    Attributes:
        kind: `conv`, `deconv` (4 x 4 transposed convolution, doubles the size), `up` (nearest-neighbor doubling, then
            a convolution), or `dense` (flattens its input).
        units: Output channels, or features.
        kernel: Kernel size of the convolution in pixels.
        stride: Stride of `conv`, 1 or 2.
        activation: Function after the normalization.
        to_feature_map: (channels, height, width) that the features of a `dense` layer are reshaped to, or None.
        is_output: Whether the layer is an output, without normalization and activation.
    """

    kind: Literal["conv", "deconv", "up", "dense"]
    units: int
    kernel: int = 4
    stride: int = 1
    activation: Activation = "leaky"
    to_feature_map: ImageShape | None = None
    is_output: bool = False


Layers = tuple[Layer, ...]


def dense(units: int, count: int = 1, *, activation: Activation = "leaky") -> Layers:
    """Return `count` fully connected layers."""
    return (Layer("dense", units, activation=activation),) * count


def to_feature_map(shape: ImageShape, *, activation: Activation = "leaky", is_output: bool = False) -> Layer:
    """Return a fully connected layer whose output is reshaped to (channels, height, width)."""
    return Layer("dense", prod(shape), activation=activation, to_feature_map=shape, is_output=is_output)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "elu": nn.ELU,
}


def build_layers(layers: Sequence[Layer], shape: Shape, norm: Norm) -> tuple[nn.Sequential, Shape]:
    """Return a module of layers from (B, *shape) to (B, *output shape), and that output shape.

    Args:
        layers: Layers from input to output.
        shape: Shape of one input sample.
        norm: Normalization of the layers that are not outputs.

    Raises:
        ValueError: A convolution follows a vector, or would halve an odd size.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        linear, output_shape = _linear_modules(layer, shape)
        modules += linear
        if not layer.is_output:
            # A dense layer is normalized as a vector, even if it is reshaped to a feature map next.
            modules.append(_normalization(norm, layer.units, is_vector=layer.kind == "dense"))
            modules.append(_ACTIVATIONS[layer.activation]())
        if layer.to_feature_map:
            modules.append(nn.Unflatten(1, layer.to_feature_map))
        shape = output_shape
    return nn.Sequential(*modules), shape


def _linear_modules(layer: Layer, shape: Shape) -> tuple[list[nn.Module], Shape]:
    """Return the linear map of a layer for samples of a shape, and the shape of its output."""
    if layer.kind == "dense":
        flatten = [nn.Flatten()] if len(shape) > 1 else []
        return [*flatten, nn.Linear(prod(shape), layer.units)], layer.to_feature_map or (layer.units,)
    if len(shape) != 3:
        raise ValueError(f"{layer.kind} layer: invalid input shape {shape}. Pass (channels, height, width).")
    channels, height, width = shape
    if layer.stride == 2 and (height % 2 or width % 2):
        raise ValueError(f"{layer.kind} layer: features of {height}x{width} pixels cannot be halved. Use even sides.")
    scale = 2 if layer.kind in ("deconv", "up") else 1
    output_shape = layer.units, height * scale // layer.stride, width * scale // layer.stride
    if layer.kind == "deconv":
        return [nn.ConvTranspose2d(channels, layer.units, 4, 2, 1)], output_shape
    before, after = (layer.kernel - 1) // 2, layer.kernel // 2
    if layer.kind == "up":
        # Not a transposed convolution, because that one leaves checkerboard artifacts.
        upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        return [upsample, nn.Conv2d(channels, layer.units, layer.kernel, 1, after)], output_shape
    if layer.stride == 2 or before == after:
        return [nn.Conv2d(channels, layer.units, layer.kernel, layer.stride, before)], output_shape
    # An even kernel at stride 1 keeps the size with one more row and column after the image than before it.
    pad = nn.ZeroPad2d((before, after, before, after))
    return [pad, nn.Conv2d(channels, layer.units, layer.kernel)], output_shape


def _normalization(norm: Norm, channels: int, *, is_vector: bool) -> nn.Module:
    """Return the normalization of a hidden layer; group norm is a layer norm for vectors."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm1d(channels) if is_vector else nn.BatchNorm2d(channels)
    if is_vector:
        return nn.LayerNorm(channels)
    # Groups of about eight channels.
    groups = max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
