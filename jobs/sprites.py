"""Sprites: many small images in one compressed sheet, and plans of how many of them a page can hold."""

import base64
import io
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_SPAN = 3.0  # standard deviations to both sides
_QUIET_POSITIONS = 5  # enough to see that nothing happens
_MOST_SWAPS = 1024  # pictures
_BLOCK = 16  # pixels that the codecs compress together: tiles fill whole blocks, lest they bleed into each other
_MARGIN = 2  # that WebP needs on top: it smooths over the edges of blocks


class Codec(NamedTuple):
    """A way to compress a sheet."""

    name: str
    mime: str
    options: dict[str, Any]  # of Pillow
    margin: int = 0  # pixels around each tile


LOSSLESS = Codec("lossless WebP", "image/webp", {"format": "WEBP", "lossless": True})
# WebP halves the resolution of colour, which shows at 32 x 32; JPEG need not, but takes twice the bytes.
_FINE = Codec("JPEG of quality 90", "image/jpeg", {"format": "JPEG", "quality": 90, "subsampling": 0})
_GOOD = Codec("WebP of quality 80", "image/webp", {"format": "WEBP", "quality": 80}, _MARGIN)
_FAIR = Codec("WebP of quality 60", "image/webp", {"format": "WEBP", "quality": 60}, _MARGIN)


class Plan(NamedTuple):
    """What a page shows of a model."""

    codec: Codec
    positions: int  # of an active latent; odd, so that 0 is one
    images: int
    side: int = 128  # pixels at most; larger images are averaged down
    latents: int = 1000  # at most, those of the highest KL

    def grid(self, *, quiet: bool) -> Tensor:
        """Where a latent is looked at, in standard deviations, rising, (P,). A quiet one has fewer positions."""
        return torch.linspace(-_SPAN, _SPAN, min(self.positions, _QUIET_POSITIONS) if quiet else self.positions)

    def tile(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """(height, width) in pixels at which images of a shape (C, H, W) are drawn."""
        scale = min(1.0, self.side / max(shape[1:]))
        return max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))

    def pitch(self, length: int) -> int:
        """From one tile of this height or width to the next; the tile begins `codec.margin` after its place."""
        return math.ceil((length + 2 * self.codec.margin) / _BLOCK) * _BLOCK

    def sprite(self, images: Tensor, columns: int) -> str:
        """Images (P, C, H, W) in [0, 1] as a sheet with rows of `columns`, which divide P; compressed, in base64."""
        height, width = self.tile((images.shape[1], images.shape[2], images.shape[3]))
        small = images if images.shape[2:] == (height, width) else F.interpolate(images, (height, width), mode="area")
        before = self.codec.margin
        right, below = self.pitch(width) - width - before, self.pitch(height) - height - before
        padded = F.pad(small, (before, right, before, below), mode="replicate")
        pixels = (padded.float().clamp(0, 1) * 255).round().byte()
        rows = pixels.view(-1, columns, *pixels.shape[1:]).permute(0, 3, 1, 4, 2)
        sheet = rows.reshape(len(rows) * pixels.shape[2], -1, pixels.shape[1]).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(buffer, **self.codec.options)
        return base64.b64encode(buffer.getvalue()).decode()


# From rich to poor: the first that fits is taken.
PLANS = (
    Plan(LOSSLESS, 13, 8),
    Plan(_FINE, 13, 8),
    Plan(_GOOD, 13, 8),
    Plan(_FAIR, 13, 8),
    Plan(_FAIR, 9, 8),
    Plan(_FAIR, 7, 8),
    Plan(_FAIR, 7, 6),
    Plan(_FAIR, 7, 4),
    Plan(_FAIR, 5, 3),
    Plan(_FAIR, 5, 2),
    Plan(_FAIR, 5, 4, side=64),
    Plan(_FAIR, 5, 2, side=64),
    Plan(_FAIR, 5, 4, side=32),
    Plan(_FAIR, 5, 2, side=32),
    Plan(_FAIR, 5, 2, side=32, latents=300),
    Plan(_FAIR, 5, 2, side=32, latents=100),
)


def swap_images(images: int, rungs: int) -> int:
    """How many of the images may be swapped with each other; 0 where even two have too many mixtures."""
    return max((n for n in range(2, images + 1) if math.comb(n, 2) * 2**rungs <= _MOST_SWAPS), default=0)


def swap_columns(rungs: int) -> int:
    """Of a sheet of 2^rungs tiles, so that it is about square: a picture's side has a limit."""
    return int(2 ** math.ceil(rungs / 2))
