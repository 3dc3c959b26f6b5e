"""The fixed space in which sets of images are compared."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SEED = 1702_08396  # of the weights; never that of a run
_WIDTH = 16
_SMALLEST = 16  # pixels; the third layer then still has 4 x 4 positions
_GAIN = 4.0  # brings edges, which are faint, to the range of the colors beside them


class RandomFeatures(nn.Module):
    """A small convolutional network with random weights, the same for all models, datasets and runs.

    The features are the mean and the standard deviation over the positions, of the colors and of three
    layers of 3 x 3 convolutions: color, fine texture, coarser texture. Random weights need no labels and
    no download, favor no model, and are the same at any image size, so the numbers can be compared over
    models on one dataset. They see less of the content than a trained network does: a Frechet distance
    in this space is not FID, and is not to be compared with one.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_SEED)
        for layer, channels in enumerate((3, _WIDTH, _WIDTH)):
            weight = torch.randn(_WIDTH, channels, 3, 3, generator=generator)
            if layer == 0:
                # The colors are features already, and would drown the edges.
                weight = _GAIN * (weight - weight.mean((2, 3), keepdim=True))
            self.register_buffer(f"weight_{layer}", weight * math.sqrt(2 / (9 * channels)))

    @property
    def count(self) -> int:
        """Number of features F."""
        return 2 * (3 + 3 * _WIDTH)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (B, C, H, W) in [0, 1], C of 1 (taken as gray) or 3, H and W of 16 or more.

        Returns:
            (B, F) float32, finite.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < _SMALLEST:
            raise ValueError(f"images (B, 1 or 3, {_SMALLEST} or more, the same) wanted, not {tuple(images.shape)}")
        hidden = images.float().expand(-1, 3, -1, -1)
        parts = [hidden]
        for layer in range(3):
            padded = F.pad(hidden, (1, 1, 1, 1), mode="reflect")
            hidden = F.conv2d(padded, self.get_buffer(f"weight_{layer}"), stride=2 if layer else 1).relu()
            parts.append(hidden)
        moments = [moment for part in parts for moment in (part.mean((2, 3)), part.std((2, 3), correction=0))]
        return torch.cat(moments, dim=1)
