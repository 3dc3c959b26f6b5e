"""Trunk, rung readers and decoder as modules, from a network's table."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from vlae.models.architectures import ImageShape, Merge, Network
from vlae.models.layers import Norm, Shape, build_layers


class Trunk(nn.Module):
    """The deterministic features h_0 = image, h_1, ...; the image is taken to [-1, 1] first."""

    def __init__(self, network: Network, image_shape: ImageShape, norm: Norm) -> None:
        super().__init__()
        self.shapes: list[Shape] = [image_shape]
        self.stages = nn.ModuleList()
        for layers in network.trunk:
            stage, shape = build_layers(layers, self.shapes[-1], norm)
            self.stages.append(stage)
            self.shapes.append(shape)
        init_weights(self, network.weight_std)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [0, 1] -> h_0, h_1, ..., each (B, *shapes[k])."""
        features = [2 * images - 1]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


def rung_reader(network: Network, rung: int, shapes: Sequence[Shape], norm: Norm) -> tuple[nn.Sequential, int]:
    """What rung `rung` makes of its trunk feature, and how many features its head sees."""
    reader, shape = build_layers(network.rungs[rung], shapes[network.feature_levels[rung]], norm)
    init_weights(reader, network.weight_std)
    return reader, prod(shape)


class Encoder(nn.Module):
    """The whole trunk and its top reader: images (B, C, H, W) in [0, 1] -> features (B, size)."""

    def __init__(self, network: Network, image_shape: ImageShape, norm: Norm) -> None:
        super().__init__()
        self.trunk = Trunk(network, image_shape, norm)
        self.reader, self.size = rung_reader(network, len(network.rungs) - 1, self.trunk.shapes, norm)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.reader(self.trunk(images)[-1])
        return features.flatten(1)


class _MergeLayer(nn.Module):
    """One joint: features from above, z_l beside them or added to them."""

    def __init__(self, joint: Merge, shape: Shape, dim: int, norm: Norm) -> None:
        super().__init__()
        self.before, shape = build_layers(joint.before, shape, norm)
        self.latent_path: nn.Module | None = None
        self.gate: nn.Parameter | None = None
        if dim:
            self.latent_path, beside = build_layers(joint.latent_path, (dim,), norm)
            if joint.gated:
                self.gate = nn.Parameter(torch.full(beside, 0.1))
            else:
                shape = (shape[0] + beside[0], *shape[1:])
        self.after, self.shape = build_layers(joint.after, shape, norm)

    def forward(self, above: Tensor, latent: Tensor | None, scale: Tensor | None) -> Tensor:
        features: Tensor = self.before(above)
        if self.latent_path is not None and latent is not None:
            beside = self.latent_path(latent)
            if scale is not None:
                beside = beside * scale
            features = features + self.gate * beside if self.gate is not None else torch.cat([features, beside], 1)
        out: Tensor = self.after(features)
        return out


class Decoder(nn.Module):
    """From the latents to the image, before the likelihood's link.

    Args:
        network: the table.
        image_shape: (channels, height, width).
        top_dim: of the latent at its top.
        joint_dims: of the latents that join on the way, bottom first; 0: none joins there.
        norm: of the hidden layers.

    Raises:
        ValueError: the table's output is not an image of that shape.
    """

    def __init__(
        self, network: Network, image_shape: ImageShape, top_dim: int, joint_dims: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        self.top, shape = build_layers(network.top, (top_dim,), norm)
        joins: list[_MergeLayer] = []
        for joint, dim in zip(reversed(network.merges), reversed(joint_dims), strict=True):
            joins.insert(0, _MergeLayer(joint, shape, dim, norm))
            shape = joins[0].shape
        self.joins = nn.ModuleList(joins)
        self.output, shape = build_layers(network.output, shape, norm)
        if shape != image_shape:
            raise ValueError(f"the network makes images of {shape}, not of {image_shape}")
        init_weights(self, network.weight_std)

    def forward(self, top: Tensor, joining: Sequence[Tensor | None], scale: Tensor | None = None) -> Tensor:
        """(B, top_dim), (B, D_l) or None for each joint -> (B, C, H, W).

        Args:
            top: enters at the top.
            joining: bottom first.
            scale: (joints + 1,) factors of what the latents lay into the decoder, the top one's last.
        """
        features: Tensor = self.top(top)
        if scale is not None:
            features = features * scale[-1]
        for rung in reversed(range(len(self.joins))):
            features = self.joins[rung](features, joining[rung], None if scale is None else scale[rung])
        image: Tensor = self.output(features)
        return image


def init_weights(module: nn.Module, std: float | None) -> None:
    """Normal weights of that standard deviation and zero biases, where the network asks for them."""
    if std is None:
        return
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
