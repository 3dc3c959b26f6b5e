"""One HTML page to handle a model with: move its latents, swap its rungs, read its scores. No server, no network.

All pictures are rendered beforehand and lie in the page as sprites, so it opens wherever a browser does: in MLflow's
sandboxed frame, from a disk, years later. How much is rendered depends on what fits: see `jobs.sprites.PLANS`.
"""

import html
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.sprites import LOSSLESS, PLANS, Plan, swap_columns, swap_images
from vlae.explore import image_noise, latent_strips, rung_swaps
from vlae.metrics import ACTIVE
from vlae.models.base import HierarchicalModel, Latents
from vlae.traversals import sample_images

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
    threshold = model.idle_kl + ACTIVE
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
