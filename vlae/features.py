"""Fixed random features: the space in which sets of images are compared by a Frechet distance."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SEED = 1702_08396  # fixed, because distances are comparable only in the same space
_WIDTH = 16
_MIN_SIDE = 16  # pixels; the third layer then still has 4 x 4 positions
_GAIN = 4.0  # brings edges, which are faint, to the range of the colors beside them


class RandomFeatures(nn.Module):
    """A small convolutional network with random weights, the same for all models, datasets and runs.

    The features are the mean and the standard deviation over positions of the colors and of three layers of 3 x 3
    convolutions (fine to coarse texture). Random weights need no labels and no download, favor no model, and work at
    any image size. They capture less of an image's content than a trained network, so a Frechet distance in this space
    is not an FID and must not be compared with one.

    Example:
        >>> RandomFeatures()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 102])
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_SEED)
        for layer, channels in enumerate((3, _WIDTH, _WIDTH)):
            weight = torch.randn(_WIDTH, channels, 3, 3, generator=generator)
            if layer == 0:
                # Zero-mean filters, because the colors are features already and would dominate the edges.
                weight = _GAIN * (weight - weight.mean((2, 3), keepdim=True))
            self.register_buffer(f"weight_{layer}", weight * math.sqrt(2 / (9 * channels)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 102) float32 of images.

        Args:
            images: Images (B, C, H, W) in [0, 1]; C is 1 (gray) or 3, H and W are at least 16.

        Raises:
            ValueError: The images have another shape.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < _MIN_SIDE:
            raise ValueError(
                f"images: invalid shape {tuple(images.shape)}. "
                f"Pass (B, 1 or 3, H, W) with H and W of at least {_MIN_SIDE}."
            )
        hidden = images.float().expand(-1, 3, -1, -1)
        maps = [hidden]
        for layer in range(3):
            padded = F.pad(hidden, (1, 1, 1, 1), mode="reflect")
            hidden = F.conv2d(padded, self.get_buffer(f"weight_{layer}"), stride=2 if layer else 1).relu()
            maps.append(hidden)
        moments = [
            moment for layer_map in maps for moment in (layer_map.mean((2, 3)), layer_map.std((2, 3), correction=0))
        ]
        return torch.cat(moments, dim=1)
