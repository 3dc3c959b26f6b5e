"""The explorer: one HTML page to move latents, swap rungs and read metrics of a model, without server or network.

All pictures are rendered beforehand and embedded as sprites, because the page must open in MLflow's sandboxed frame and
from a disk. `PLANS` decides how many pictures fit.
"""

import base64
import html
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlae.metrics import SONDERBY_ACTIVE_KL
from vlae.models.base import HierarchicalModel, Latents
from vlae.traversals import infer_noise, latent_traversals, sample_images, swap_rungs

MAX_BYTES = 4_500_000  # of a page
_MAX_LOSSLESS_BYTES = 2_000_000  # above which a smaller page is worth more than exact pixels
_MAX_PIXELS = 60_000_000  # of all pictures together, because they take a core a minute or two
_MAX_SWAPS = 1024  # pictures of swapped rungs
_SPAN = 3.0  # standard deviations to both sides
_INACTIVE_POSITIONS = 5  # enough to see that the image does not change
_BLOCK = 16  # pixels that the codecs compress together; tiles fill whole blocks, because tiles in one block mix colors
_WEBP_MARGIN = 2  # pixels more, because WebP smooths over the edges of blocks
_TEMPLATE = Path(__file__).with_name("explorer.html")

Floats = NDArray[np.floating]


class Codec(NamedTuple):
    """Compression of a sprite sheet: arguments of Pillow's `Image.save`, and pixels of margin around each tile."""

    name: str
    mime: str
    options: dict[str, Any]
    margin: int = 0


LOSSLESS = Codec("lossless WebP", "image/webp", {"format": "WEBP", "lossless": True})
# WebP halves the resolution of color, which shows at 32 x 32 pixels. JPEG can keep it, but takes twice the bytes.
_JPEG_90 = Codec("JPEG of quality 90", "image/jpeg", {"format": "JPEG", "quality": 90, "subsampling": 0})
_WEBP_80 = Codec("WebP of quality 80", "image/webp", {"format": "WEBP", "quality": 80}, _WEBP_MARGIN)
_WEBP_60 = Codec("WebP of quality 60", "image/webp", {"format": "WEBP", "quality": 60}, _WEBP_MARGIN)


class Plan(NamedTuple):
    """What a page shows of a model.

    Attributes:
        codec: Compression of the pictures.
        positions: Positions of an active latent; odd, so that 0 is a position.
        images: Maximum number of test images.
        side: Maximum height and width in pixels; larger images are averaged down.
        latents: Maximum number of latents, those of the highest KL.
    """

    codec: Codec
    positions: int
    images: int
    side: int = 128
    latents: int = 1000

    def grid(self, *, inactive: bool) -> Tensor:
        """Return the increasing positions (P,) of a latent in standard deviations; an inactive latent has fewer."""
        return torch.linspace(-_SPAN, _SPAN, min(self.positions, _INACTIVE_POSITIONS) if inactive else self.positions)

    def tile(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return the height and width in pixels at which images of a shape (C, H, W) are drawn."""
        scale = min(1.0, self.side / max(shape[1:]))
        return max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))

    def pitch(self, length: int) -> int:
        """Return the pixels between the starts of two tiles, a multiple of `_BLOCK`, for tiles of a length in pixels.

        A tile begins `codec.margin` after its cell.
        """
        return math.ceil((length + 2 * self.codec.margin) / _BLOCK) * _BLOCK

    def sprite(self, images: Tensor, columns: int) -> str:
        """Return images (P, C, H, W) in [0, 1] as one compressed sheet in base64; the number of columns divides P."""
        height, width = self.tile((images.shape[1], images.shape[2], images.shape[3]))
        small = images if images.shape[2:] == (height, width) else F.interpolate(images, (height, width), mode="area")
        margin = self.codec.margin
        right, below = self.pitch(width) - width - margin, self.pitch(height) - height - margin
        padded = F.pad(small, (margin, right, margin, below), mode="replicate")
        pixels = (padded.float().clamp(0, 1) * 255).round().byte()
        rows = pixels.view(-1, columns, *pixels.shape[1:]).permute(0, 3, 1, 4, 2)
        sheet = rows.reshape(len(rows) * pixels.shape[2], -1, pixels.shape[1]).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(buffer, **self.codec.options)
        return base64.b64encode(buffer.getvalue()).decode()


# From the richest to the poorest; the first that fits is used.
PLANS = (
    Plan(LOSSLESS, 13, 8),
    Plan(_JPEG_90, 13, 8),
    Plan(_WEBP_80, 13, 8),
    Plan(_WEBP_60, 13, 8),
    Plan(_WEBP_60, 9, 8),
    Plan(_WEBP_60, 7, 8),
    Plan(_WEBP_60, 7, 6),
    Plan(_WEBP_60, 7, 4),
    Plan(_WEBP_60, 5, 3),
    Plan(_WEBP_60, 5, 2),
    Plan(_WEBP_60, 5, 4, side=64),
    Plan(_WEBP_60, 5, 2, side=64),
    Plan(_WEBP_60, 5, 4, side=32),
    Plan(_WEBP_60, 5, 2, side=32),
    Plan(_WEBP_60, 5, 2, side=32, latents=300),
    Plan(_WEBP_60, 5, 2, side=32, latents=100),
)


class _Latent(NamedTuple):
    rung: int
    dim: int
    kl: float  # nats
    inactive: bool


def swap_images(images: int, rungs: int) -> int:
    """Return the largest number of images whose pairs have at most 1,024 mixtures; 0 if two images have more."""
    return max((n for n in range(2, images + 1) if math.comb(n, 2) * 2**rungs <= _MAX_SWAPS), default=0)


def swap_columns(rungs: int) -> int:
    """Return the columns, a power of 2, of a nearly square sheet of 2^rungs tiles; the side of a sheet is limited."""
    return int(2 ** math.ceil(rungs / 2))


def explorer_page(
    model: HierarchicalModel,
    images: Tensor,
    *,
    title: str,
    kl_dims: Sequence[Floats],
    information: Floats | None = None,
    names: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """Return the explorer page, HTML in UTF-8 of at most `MAX_BYTES`.

    Args:
        model: Model in evaluation mode.
        images: Test images (N, C, H, W) in [0, 1], on the model's device, N >= 1. The first eight or fewer are shown.
        title: Title of the page, such as the name of the run.
        kl_dims: Mean KL of each latent in nats, (D_l,) per rung, bottom first. Inactive latents are folded away.
        information: Information (L, K) of each rung about each factor, NaN if undefined; None leaves the table out.
        names: Names of the K factors.
        facts: Values under the title by name, such as metrics.

    Raises:
        ValueError: The page is too large even with the fewest pictures.
    """
    threshold = model.collapsed_kl + SONDERBY_ACTIVE_KL
    latents = [
        _Latent(rung, dim, float(kl), not kl > threshold)
        for rung, rates in enumerate(kl_dims)
        for dim, kl in enumerate(rates)
    ]
    latents.sort(key=lambda latent: (latent.inactive, -latent.kl if math.isfinite(latent.kl) else 0.0))
    images = images[: max(plan.images for plan in PLANS)]
    noise = infer_noise(model, images)
    content = {
        "title": title,
        "facts": list((facts or {}).items()),
        "rungs": [
            {"rate": _finite(rates.sum()), "dims": len(rates), "active": int((np.asarray(rates) > threshold).sum())}
            for rates in kl_dims
        ],
        "threshold": round(threshold, 3),
        "names": list(names),
        "information": None if information is None else [[_finite(value) for value in row] for row in information],
    }
    for plan in _promising_plans(model, noise, latents):
        page = _fill_template(content | _pictures(model, images, noise, latents, plan))
        if len(page) <= _max_bytes(plan):
            return page
    raise ValueError(f"explorer: no page of at most {MAX_BYTES:,} bytes can show this model. Use fewer latents.")


def _promising_plans(model: HierarchicalModel, noise: Latents, latents: list[_Latent]) -> Iterator[Plan]:
    """Yield the plans whose page should be small enough, estimated from strips of the latents of the highest KL."""
    grid, first = PLANS[0].grid(inactive=False).to(noise[0])[None], [rung[:1] for rung in noise]
    strips = torch.cat([latent_traversals(model, first, latent.rung, [latent.dim], grid) for latent in latents[:3]])
    tile_bytes: dict[tuple[str, int], float] = {}
    for plan in PLANS:
        key = plan.codec.name, plan.side
        if key not in tile_bytes:
            tile_bytes[key] = sum(len(plan.sprite(strip, len(strip))) for strip in strips) / math.prod(strips.shape[:2])
        images = min(plan.images, len(noise[0]))
        positions = sum(len(plan.grid(inactive=latent.inactive)) for latent in latents[: plan.latents])
        tiles = images * (2 + positions) + math.comb(swap_images(images, len(noise)), 2) * (1 << len(noise))
        pixels = tiles * math.prod(plan.tile(model.image_shape))
        if tile_bytes[key] * tiles <= _max_bytes(plan) and pixels <= _MAX_PIXELS:
            yield plan


def _max_bytes(plan: Plan) -> int:
    return _MAX_LOSSLESS_BYTES if plan.codec is LOSSLESS else MAX_BYTES


def _fill_template(content: dict[str, Any]) -> bytes:
    """Return the template with title and data, escaped so that no text can end its element."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    texts = {"title": html.escape(content["title"]), "data": data}
    return re.sub(r"\{\{(title|data)\}\}", lambda match: texts[match[1]], _TEMPLATE.read_text("utf-8")).encode()


def _pictures(
    model: HierarchicalModel, images: Tensor, noise: Latents, latents: list[_Latent], plan: Plan
) -> dict[str, Any]:
    """Return all sprites of a plan, and the positions of the tiles in them."""
    latents, left_out = latents[: plan.latents], len(latents[plan.latents :])
    images, rungs = images[: plan.images], len(noise)
    rows = [[rung[index : index + 1] for rung in noise] for index in range(len(images))]
    reconstructions = sample_images(model, [rung[: plan.images] for rung in noise])
    height, width = plan.tile(model.image_shape)
    num_swapped = swap_images(len(images), rungs)
    size = f"{width} by {height} pixels"
    if (height, width) != model.image_shape[1:]:
        size += f" (the model's images have {model.image_shape[2]} by {model.image_shape[1]})"
    note = f"Pictures: {plan.positions} positions per active latent, {size}, {plan.codec.name}."
    if left_out:
        note += f" {left_out} more latents, those of the lowest rates, are not shown."
    return {
        "mime": plan.codec.mime,
        "tile": [width, height],
        "pitch": [plan.pitch(width), plan.pitch(height)],
        "margin": plan.codec.margin,
        "grids": [[round(value, 4) for value in plan.grid(inactive=flag).tolist()] for flag in (False, True)],
        "latents": [{**latent._asdict(), "kl": _finite(latent.kl)} for latent in latents],
        "images": [
            {
                "picture": plan.sprite(image[None], 1),
                "copy": plan.sprite(reconstruction[None], 1),
                **_strips(model, row, latents, plan),
            }
            for row, image, reconstruction in zip(rows, images, reconstructions, strict=True)
        ],
        "swapImages": num_swapped,
        "swapColumns": swap_columns(rungs),
        # Each pair once, because the exchanged pair has the same mixtures in reverse order.
        "swaps": {
            f"{first}-{second}": plan.sprite(swap_rungs(model, rows[first], rows[second])[0], swap_columns(rungs))
            for first, second in itertools.combinations(range(num_swapped), 2)
        },
        "note": note,
    }


def _strips(model: HierarchicalModel, noise: Latents, latents: list[_Latent], plan: Plan) -> dict[str, Any]:
    """Return one strip per latent of one image; the image's own value replaces the nearest position."""
    sprites: dict[_Latent, str] = {}
    for rung, inactive in itertools.product(range(len(noise)), (False, True)):
        selected = [latent for latent in latents if latent.rung == rung and latent.inactive == inactive]
        if selected:
            dims = [latent.dim for latent in selected]
            own = noise[rung][0, dims][:, None]
            positions = plan.grid(inactive=inactive).to(own).repeat(len(selected), 1)
            positions.scatter_(1, (positions - own).abs().argmin(1, keepdim=True), own)
            strips = latent_traversals(model, noise, rung, dims, positions)
            sprites |= {latent: plan.sprite(strip, len(strip)) for latent, strip in zip(selected, strips, strict=True)}
    return {
        "own": [_finite(noise[latent.rung][0, latent.dim].item()) for latent in latents],
        "strips": [sprites[latent] for latent in latents],
    }


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
