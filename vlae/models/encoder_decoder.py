"""Trunk, rung encoders and decoder as modules, built from a `Network`."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from vlae.models.architectures import Merge, Network
from vlae.models.layers import ImageShape, Norm, Shape, build_layers


def init_weights(module: nn.Module, std: float | None) -> None:
    """Draw weights from N(0, std^2) and set biases to zero; None keeps PyTorch's initialization."""
    if std is None:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Trunk(nn.Module):
    """The deterministic features h_0, h_1, ..., where h_0 is the image scaled to [-1, 1].

    Attributes:
        shapes: Shape of each feature level of one image.
    """

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
        """Return h_0, h_1, ..., each (B, *shapes[k]), of images (B, C, H, W) in [0, 1]."""
        features = [2 * images - 1]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


def rung_encoder(network: Network, rung: int, shapes: Sequence[Shape], norm: Norm) -> tuple[nn.Sequential, int]:
    """Return the layers from a rung's trunk features to the input of its head, and their number of output features.

    `shapes` has the shape of each feature level (`Trunk.shapes`).
    """
    encoder, shape = build_layers(network.rungs[rung], shapes[network.feature_levels[rung]], norm)
    init_weights(encoder, network.weight_std)
    return encoder, prod(shape)


class Encoder(nn.Module):
    """The whole trunk and the top rung's encoder.

    Attributes:
        size: Number of output features F.
    """

    def __init__(self, network: Network, image_shape: ImageShape, norm: Norm) -> None:
        super().__init__()
        self.trunk = Trunk(network, image_shape, norm)
        self.rung_encoder, self.size = rung_encoder(network, len(network.rungs) - 1, self.trunk.shapes, norm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, F) of images (B, C, H, W) in [0, 1]."""
        features: Tensor = self.rung_encoder(self.trunk(images)[-1])
        return features.flatten(1)


class _MergeLayer(nn.Module):
    """One merge; dim 0 means that no latent enters here."""

    def __init__(self, merge: Merge, shape: Shape, dim: int, norm: Norm) -> None:
        super().__init__()
        self.before, shape = build_layers(merge.before, shape, norm)
        self.latent_path: nn.Module | None = None
        self.gate: nn.Parameter | None = None
        if dim:
            self.latent_path, latent_shape = build_layers(merge.latent_path, (dim,), norm)
            if merge.gated:
                self.gate = nn.Parameter(torch.full(latent_shape, 0.1))
            else:
                shape = (shape[0] + latent_shape[0], *shape[1:])
        self.after, self.shape = build_layers(merge.after, shape, norm)

    def forward(self, above: Tensor, latent: Tensor | None, scale: Tensor | None) -> Tensor:
        features: Tensor = self.before(above)
        if self.latent_path is not None and latent is not None:
            beside = self.latent_path(latent)
            if scale is not None:
                beside = beside * scale
            features = features + self.gate * beside if self.gate is not None else torch.cat([features, beside], 1)
        merged: Tensor = self.after(features)
        return merged


class Decoder(nn.Module):
    """Map of the latents to the decoder's output, before the likelihood's sigmoid.

    Args:
        network: Architecture.
        image_shape: (channels, height, width).
        top_dim: Dimensions of the latent that enters at the top.
        merge_dims: Dimensions of the latent that enters at each merge, bottom first; 0 where none enters.
        norm: Normalization of the hidden layers.

    Raises:
        ValueError: The architecture's output has another shape than the images.
    """

    def __init__(
        self, network: Network, image_shape: ImageShape, top_dim: int, merge_dims: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        self.top, shape = build_layers(network.top, (top_dim,), norm)
        merges: list[_MergeLayer] = []
        for merge, dim in zip(reversed(network.merges), reversed(merge_dims), strict=True):
            merges.insert(0, _MergeLayer(merge, shape, dim, norm))
            shape = merges[0].shape
        self.rung_merges = nn.ModuleList(merges)
        self.output, shape = build_layers(network.output, shape, norm)
        if shape != image_shape:
            raise ValueError(f"network: output shape {shape} differs from image shape {image_shape}. Change `output`.")
        init_weights(self, network.weight_std)

    def forward(
        self, top: Tensor, latents: Sequence[Tensor | None] | None = None, gates: Tensor | None = None
    ) -> Tensor:
        """Return the decoder's output (B, C, H, W), unbounded.

        Args:
            top: Latent (B, top_dim) that enters at the top.
            latents: Latent (B, D_l) that enters at each merge, bottom first; None for merges without latents.
            gates: (merges + 1,), factor of the contribution of each latent, the top one last; None for 1.
        """
        features: Tensor = self.top(top)
        if gates is not None:
            features = features * gates[-1]
        for rung in reversed(range(len(self.rung_merges))):
            latent = None if latents is None else latents[rung]
            features = self.rung_merges[rung](features, latent, None if gates is None else gates[rung])
        image: Tensor = self.output(features)
        return image
