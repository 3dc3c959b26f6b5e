"""Pictures and effects of one rung at a time: resample its noise, keep that of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents


@torch.no_grad()
def resample_rung(model: HierarchicalModel, base: Latents, rung: int, count: int, generator: torch.Generator) -> Tensor:
    """The blog figure's block: images that differ in the noise of one rung only.

    Args:
        model: any hierarchical model.
        base: noise of R starting images, (R, D_l) per rung.
        rung: which rung's noise is drawn anew.
        count: images per starting image.
        generator: of the new noise, shared by the rows, so that a column is one draw.

    Returns:
        Mean images (R, count, C, H, W) in [0, 1].
    """
    rows = len(base[0])
    noise = [part.repeat_interleave(count, dim=0) for part in base]
    noise[rung] = model.noise(count, generator)[rung].repeat(rows, 1)
    images = model.mean_image(model.prior(noise))
    return images.view(rows, count, *images.shape[1:])


@dataclass(frozen=True)
class Effects:
    """Total effect of each rung (Sobol): the share of the variance that resampling it alone brings."""

    pixels: list[float]  # of the variance of the image
    colour: list[float]  # of the variance of the mean colour
    colour_share: list[float]  # of the rung's effect on the image, the part that is a shift of mean colour


@torch.no_grad()
def total_effects(model: HierarchicalModel, count: int, generator: torch.Generator) -> Effects:
    """S_l = E[(f(e) - f(e with rung l redrawn))^2] / (2 Var f), in pixel and in mean-colour space.

    Jansen's estimator (1999) on `count` pairs of prior samples. Values lie in [0, 1] up to sampling error,
    and add up to 1 or more; a model whose images do not vary has NaN.
    """
    base, other = model.noise(count, generator), model.noise(count, generator)
    images = _images(model, base)
    colour = images.mean((2, 3))
    pixel_effect, colour_effect = [], []
    for rung in range(len(base)):
        changed = [*base[:rung], other[rung], *base[rung + 1 :]]
        delta = images - _images(model, changed)
        pixel_effect.append(delta.square().mean().item() / 2)
        colour_effect.append(delta.mean((2, 3)).square().mean().item() / 2)
    pixel_variance = images.var(0).mean().item()
    colour_variance = colour.var(0).mean().item()
    return Effects(
        [_ratio(effect, pixel_variance) for effect in pixel_effect],
        [_ratio(effect, colour_variance) for effect in colour_effect],
        [_ratio(part, whole) for part, whole in zip(colour_effect, pixel_effect, strict=True)],
    )


def _images(model: HierarchicalModel, noise: Latents) -> Tensor:
    latents = model.prior(noise)
    starts = range(0, len(latents[0]), 256)
    return torch.cat([model.mean_image([part[start : start + 256] for part in latents]) for start in starts])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
