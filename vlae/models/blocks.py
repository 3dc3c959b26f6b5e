"""Building blocks that all models share: one trunk, one decoder, one kind of head."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "none"]


@dataclass(frozen=True)
class Pyramid:
    """Resolutions and channels by level: level 0 is the image, each further level half its size.

    Halving stops at 4 to 7 pixels, or at an odd size: 64 -> 32, 16, 8, 4 and 28 -> 14, 7.
    Channels double from `width` at level 1, and stop at 8 * width.
    """

    image_shape: tuple[int, int, int]
    width: int

    @property
    def depth(self) -> int:
        """The deepest level, at least 1."""
        level = 0
        height, rows = self.image_shape[1:]
        while height % 2 == 0 and rows % 2 == 0 and min(height, rows) >= 8:
            height, rows, level = height // 2, rows // 2, level + 1
        if level == 0:
            raise ValueError(f"images of {self.image_shape[1]}x{self.image_shape[2]} pixels cannot be halved once")
        return level

    def shape(self, level: int) -> tuple[int, int, int]:
        """(channels, height, width) of the features at `level`."""
        channels, height, width = self.image_shape
        if level == 0:
            return channels, height, width
        return self.width * 2 ** min(level - 1, 3), height >> level, width >> level

    def size(self, level: int) -> int:
        """Number of values in the features at `level`."""
        channels, height, width = self.shape(level)
        return channels * height * width


def _norm(norm: Norm, channels: int) -> nn.Module:
    """GroupNorm with about eight channels a group; it has no running state, so workers cannot disagree."""
    if norm == "none":
        return nn.Identity()
    groups = max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ConvBlock(nn.Module):
    """Features of one level to those of the same or the next level: 4x4 stride 2 or 3x3, then 3x3.

    Args:
        pyramid: shapes by level.
        source: level of the input.
        target: level of the output: `source` or `source + 1`.
        norm: normalisation after each convolution.
    """

    def __init__(self, pyramid: Pyramid, source: int, target: int, norm: Norm) -> None:
        super().__init__()
        before, after = pyramid.shape(source)[0], pyramid.shape(target)[0]
        first = nn.Conv2d(before, after, 4, 2, 1) if target > source else nn.Conv2d(before, after, 3, 1, 1)
        self.layers = nn.Sequential(
            first,
            _norm(norm, after),
            nn.LeakyReLU(0.1),
            nn.Conv2d(after, after, 3, 1, 1),
            _norm(norm, after),
            nn.LeakyReLU(0.1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, *shape(source)) -> (B, *shape(target))."""
        out: Tensor = self.layers(features)
        return out


class UpBlock(nn.Module):
    """Features of one level, with `extra` channels beside them, to the same level or the one above.

    Nearest-neighbour enlargement and a 3x3 convolution: a transposed one leaves checkerboards.
    """

    def __init__(self, pyramid: Pyramid, source: int, target: int, norm: Norm, extra: int = 0) -> None:
        super().__init__()
        self.enlarge = source > target
        after = pyramid.shape(target)[0] if target else pyramid.width
        self.layers = nn.Sequential(
            nn.Conv2d(pyramid.shape(source)[0] + extra, after, 3, 1, 1),
            _norm(norm, after),
            nn.LeakyReLU(0.1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels(source) + extra, h, w) -> (B, channels(target), 2h, 2w), or h, w within a level."""
        if self.enlarge:
            features = F.interpolate(features, scale_factor=2.0, mode="nearest")
        out: Tensor = self.layers(features)
        return out


def mlp(sizes: list[int], norm: Norm) -> nn.Sequential:
    """Fully connected layers `sizes[0] -> ... -> sizes[-1]`, each with norm and leaky ReLU 0.1."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LayerNorm(after) if norm == "group" else nn.Identity()]
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def posterior_head(features: int, dim: int) -> nn.Linear:
    """Linear head (B, features) -> (B, 2 dim) of a posterior that tells images apart from the first step.

    Means start with a standard deviation of about one over the data and sigma at exp(-1), so each
    dimension passes half a nat or so before anything is learned. A head that starts at the prior passes
    nothing, and a decoder soon learns to do without it.
    """
    head = nn.Linear(features, 2 * dim)
    nn.init.normal_(head.weight[:dim], std=features**-0.5)
    nn.init.zeros_(head.weight[dim:])
    nn.init.zeros_(head.bias[:dim])
    nn.init.constant_(head.bias[dim:], -1.0)
    return head


def prior_head(features: int, dim: int) -> nn.Linear:
    """Linear head of a learned prior, zero at first: it starts at N(0, I)."""
    head = nn.Linear(features, 2 * dim)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
