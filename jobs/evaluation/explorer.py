"""One HTML page to handle a model with: move its latents, swap its rungs, read its scores. No server, no network.

All pictures are rendered beforehand and lie in the page as sprites, so it opens wherever a browser does: in MLflow's
sandboxed frame, from a disk, years later. How much is rendered depends on what fits: see `PLANS`.
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

from vlae.metrics import ACTIVE
from vlae.models.base import HierarchicalModel, Latents
from vlae.traversals import image_noise, latent_strips, rung_swaps, sample_images

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
# WebP halves the resolution of color, which shows at 32 x 32; JPEG need not, but takes twice the bytes.
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


MOST_BYTES = 4_500_000  # of a page
_LOSSLESS_BYTES = 2_000_000  # a larger page is better off with fewer bytes than with every bit of its pixels
_MOST_PIXELS = 60_000_000  # of all pictures together: they take a core a minute or two
_TEMPLATE = Path(__file__).with_name("explorer.html")

Floats = NDArray[np.floating]


class _Latent(NamedTuple):
    rung: int
    dim: int
    kl: float  # nats
    quiet: bool  # it is not in use


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
    """The page, UTF-8, of `MOST_BYTES` at most.

    Args:
        model: in evaluation mode.
        images: test images (N, C, H, W) in [0, 1], on the model's device, N >= 1; the first eight or fewer are shown.
        title: of the page, such as the name of the run.
        kl_dims: mean KL of each latent in nats, (D_l,) per rung, bottom first. Latents are folded away
            that cost less than .01 nat more than one that tells nothing.
        information: share of each factor that each rung tells, (L, K), NaN where there is none; None leaves it out.
        names: of the K factors.
        facts: what else to say under the title, name -> value, such as a few scores.

    Raises:
        ValueError: the page is too large even with the fewest pictures.
    """
    threshold = model.collapsed_kl + ACTIVE
    latents = [
        _Latent(rung, dim, float(kl), not kl > threshold)
        for rung, rates in enumerate(kl_dims)
        for dim, kl in enumerate(rates)
    ]
    latents.sort(key=lambda latent: (latent.quiet, -latent.kl if math.isfinite(latent.kl) else 0.0))
    images = images[: max(plan.images for plan in PLANS)]
    noise = image_noise(model, images)
    scores = {
        "title": title,
        "facts": list((facts or {}).items()),
        "rungs": [_rung(np.asarray(rates), threshold) for rates in kl_dims],
        "threshold": round(threshold, 3),
        "names": list(names),
        "information": None if information is None else [[_finite(value) for value in row] for row in information],
    }
    for plan in _promising(model, noise, latents):
        page = _fill(scores | _pictures(model, images, noise, latents, plan))
        if len(page) <= _limit(plan):
            return page
    raise ValueError(f"no page of {MOST_BYTES:,} bytes holds this model")


def _rung(rates: Floats, threshold: float) -> dict[str, Any]:
    return {"rate": _finite(rates.sum()), "dims": len(rates), "active": int((rates > threshold).sum())}


def _promising(model: HierarchicalModel, noise: Latents, latents: list[_Latent]) -> Iterator[Plan]:
    """The plans whose pages should be small enough, by what strips of the first image's busiest latents take."""
    grid, one = PLANS[0].grid(quiet=False).to(noise[0])[None], [part[:1] for part in noise]
    probe = torch.cat([latent_strips(model, one, latent.rung, [latent.dim], grid) for latent in latents[:3]])
    tile_bytes: dict[tuple[str, int], float] = {}
    for plan in PLANS:
        way = plan.codec.name, plan.side
        if way not in tile_bytes:
            tile_bytes[way] = sum(len(plan.sprite(strip, len(strip))) for strip in probe) / math.prod(probe.shape[:2])
        tiles = _tiles(plan, latents, len(noise[0]), len(noise))
        pixels = tiles * math.prod(plan.tile(model.image_shape))
        if tile_bytes[way] * tiles <= _limit(plan) and pixels <= _MOST_PIXELS:
            yield plan


def _limit(plan: Plan) -> int:
    return _LOSSLESS_BYTES if plan.codec is LOSSLESS else MOST_BYTES


def _fill(content: dict[str, Any]) -> bytes:
    """The template with its title and its data; no text of theirs can end the element that it is in."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": html.escape(content["title"]), "data": data}
    return re.sub(r"\{\{(title|data)\}\}", lambda found: parts[found[1]], _TEMPLATE.read_text("utf-8")).encode()


def _pictures(
    model: HierarchicalModel, images: Tensor, noise: Latents, latents: list[_Latent], plan: Plan
) -> dict[str, Any]:
    """All sprites of a plan, and how to find the tiles in them."""
    kept, rungs = latents[: plan.latents], len(noise)
    shown = images[: plan.images]
    rows = [[part[number : number + 1] for part in noise] for number in range(len(shown))]
    copies = sample_images(model, [part[: plan.images] for part in noise])
    height, width = plan.tile(model.image_shape)
    swapped = swap_images(len(shown), rungs)
    return {
        "mime": plan.codec.mime,
        "tile": [width, height],
        "pitch": [plan.pitch(width), plan.pitch(height)],
        "margin": plan.codec.margin,
        "grids": [[round(place, 4) for place in plan.grid(quiet=quiet).tolist()] for quiet in (False, True)],
        "latents": [{**latent._asdict(), "kl": _finite(latent.kl)} for latent in kept],
        "images": [
            {"picture": plan.sprite(pair[:1], 1), "copy": plan.sprite(pair[1:], 1), **_strips(model, row, kept, plan)}
            for row, pair in zip(rows, torch.stack([shown, copies], 1), strict=True)
        ],
        "swapImages": swapped,
        "swapColumns": swap_columns(rungs),
        # Of each pair once: the mixtures of the pair turned around are the same.
        "swaps": {
            f"{first}-{second}": plan.sprite(rung_swaps(model, rows[first], rows[second])[0], swap_columns(rungs))
            for first, second in itertools.combinations(range(swapped), 2)
        },
        "note": _note(plan, model.image_shape, len(latents) - len(kept)),
    }


def _strips(model: HierarchicalModel, noise: Latents, latents: list[_Latent], plan: Plan) -> dict[str, Any]:
    """One strip per latent of one image; the position nearest to the image's own value is that value."""
    sprites: dict[_Latent, str] = {}
    for rung, quiet in itertools.product(range(len(noise)), (False, True)):
        some = [latent for latent in latents if latent.rung == rung and latent.quiet == quiet]
        if some:
            dims = [latent.dim for latent in some]
            own = noise[rung][0, dims][:, None]
            positions = plan.grid(quiet=quiet).to(own).repeat(len(some), 1)
            positions.scatter_(1, (positions - own).abs().argmin(1, keepdim=True), own)
            strips = latent_strips(model, noise, rung, dims, positions)
            sprites |= {latent: plan.sprite(strip, len(strip)) for latent, strip in zip(some, strips, strict=True)}
    return {
        "own": [_finite(noise[latent.rung][0, latent.dim].item()) for latent in latents],
        "strips": [sprites[latent] for latent in latents],
    }


def _tiles(plan: Plan, latents: list[_Latent], images: int, rungs: int) -> int:
    """How many pictures a plan shows."""
    shown = min(plan.images, images)
    moved = sum(len(plan.grid(quiet=latent.quiet)) for latent in latents[: plan.latents])
    return shown * (2 + moved) + math.comb(swap_images(shown, rungs), 2) * (1 << rungs)


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _note(plan: Plan, shape: tuple[int, int, int], left_out: int) -> str:
    """How the pictures were made, for those who look closely."""
    size = plan.tile(shape)
    drawn = f"{size[1]} by {size[0]} pixels"
    if size != shape[1:]:
        drawn += f" (the model's images have {shape[2]} by {shape[1]})"
    gone = f" {left_out} more latents, those of the lowest rates, are not shown." if left_out else ""
    return f"Pictures: {plan.positions} positions per active latent, {drawn}, {plan.codec.name}.{gone}"
