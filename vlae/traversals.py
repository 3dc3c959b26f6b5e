"""Pictures of one rung at a time: vary its noise, keep that of the others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents, eval_batch_size


@torch.no_grad()
def sample_images(model: HierarchicalModel, noise: Latents) -> Tensor:
    """Mean images of ancestral samples, (B, C, H, W) in [0, 1], few at a time so that memory stays small.

    Args:
        model: any hierarchical model.
        noise: standard normal, (B, D_l) per rung.
    """
    size = eval_batch_size(noise[0].device)
    rows = [[part[start : start + size] for part in noise] for start in range(0, len(noise[0]), size)]
    return torch.cat([model.mean_image(model.prior(chunk)) for chunk in rows])


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
    images = sample_images(model, noise)
    return images.view(rows, count, *images.shape[1:])


def manifold(
    model: HierarchicalModel,
    base: Latents,
    rung: int,
    *,
    count: int = 20,
    dims: tuple[int, int] = (0, 1),
    span: float = 2.0,
) -> Tensor:
    """The square [-span, span]^2 of two dims of one rung's noise, as a sheet of images.

    The MNIST picture of Zhao, Song, Ermon 2017, in which the other rungs are drawn anew for each tile.

    Args:
        model: any hierarchical model.
        base: noise of all rungs, (R, D_l) each: one row for the same other rungs on every tile, or one row
            per tile. The rung's own other dims are those of the first row either way.
        rung: which rung is laid out.
        count: tiles along a side.
        dims: the dim that grows along a row, and the one that grows from row to row, if the rung has two.
        span: in standard deviations of the noise.

    Returns:
        Mean images (count, count, C, H, W) in [0, 1], or (1, count, C, H, W) for a rung of one dim.

    Raises:
        ValueError: `base` has neither one row nor one per tile, or there are no such dims.
    """
    width = base[rung].shape[1]
    chosen = dims if width > 1 else (0,)
    if len(set(chosen)) < len(chosen) or not all(0 <= dim < width for dim in chosen):
        raise ValueError(f"rung {rung} has {width} dims, so it has no pair {dims}")
    tiles = count ** len(chosen)
    if len(base[0]) not in (1, tiles):
        raise ValueError(f"base has {len(base[0])} rows, not 1 and not one for each of {tiles} tiles")
    noise = [part.expand(tiles, -1) for part in base]
    noise[rung] = _lay_out(base[rung][0], chosen, torch.linspace(-span, span, count, device=base[rung].device))
    images = sample_images(model, noise)
    return images.view(-1, count, *images.shape[1:])


def _lay_out(values: Tensor, dims: tuple[int, ...], axis: Tensor) -> Tensor:
    """Rows of values (D,), in which the first of one or two dims runs along `axis` fast, and the second slowly."""
    count = len(axis)
    laid = values.repeat(count ** len(dims), 1)
    laid[:, dims[0]] = axis.repeat(len(laid) // count)
    if len(dims) == 2:
        laid[:, dims[1]] = axis.repeat_interleave(count)
    return laid


@torch.no_grad()
def image_noise(model: HierarchicalModel, images: Tensor) -> Latents:
    """The noise from which the prior makes the posterior means of images: `prior(image_noise(x))` is `means(x)`.

    Args:
        model: any hierarchical model, in evaluation mode.
        images: (B, C, H, W) in [0, 1].

    Returns:
        (B, D_l) per rung, bottom first, in standard deviations of N(0, 1).
    """
    parts = []
    for pixels in torch.split(images, eval_batch_size(images.device)):
        drawn = model.infer_means(pixels)
        parts.append([p.noise(q.mean) for q, p in zip(drawn.posteriors, drawn.priors, strict=True)])
    return [torch.cat(rung) for rung in zip(*parts, strict=True)]


def latent_strips(
    model: HierarchicalModel, noise: Latents, rung: int, dims: Sequence[int], positions: Tensor
) -> Tensor:
    """What each of some dims of one rung does to one image, all else kept.

    Args:
        model: any hierarchical model, in evaluation mode.
        noise: of one image, (1, D_l) per rung, as `image_noise` gives it.
        rung: whose dims are moved, 0 at the bottom.
        dims: which of them, one strip each.
        positions: the values that they take, (len(dims), P), in standard deviations.

    Returns:
        Mean images (len(dims), P, C, H, W) in [0, 1].

    Raises:
        ValueError: the noise is not that of one image, or the positions are not one row per dim.
    """
    if len(noise[0]) != 1 or len(positions) != len(dims):
        raise ValueError(f"{len(noise[0])} images and {len(positions)} rows of positions for {len(dims)} dims")
    count, steps = positions.shape
    moved = [part.expand(count * steps, -1) for part in noise]
    columns = torch.tensor(list(dims), device=positions.device).repeat_interleave(steps)
    moved[rung] = moved[rung].scatter(1, columns[:, None], positions.reshape(-1, 1))
    images = sample_images(model, moved)
    return images.view(count, steps, *images.shape[1:])


def rung_swaps(model: HierarchicalModel, first: Latents, second: Latents) -> Tensor:
    """All ways to take some rungs from one image and the others from another.

    Args:
        model: any hierarchical model with L rungs, in evaluation mode.
        first: noise of R images, (R, D_l) per rung.
        second: noise of the R images that they are paired with.

    Returns:
        Mean images (R, 2^L, C, H, W) in [0, 1]. In image number i of a pair, rung l is the second image's where
        bit l of i is set: number 0 is the first image, number 2^L - 1 the second.
    """
    pairs, ways = len(first[0]), 2 ** len(first)
    numbers = torch.arange(ways, device=first[0].device).repeat(pairs)
    mixed = []
    for rung, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        swapped = ((numbers >> rung) & 1).bool()[:, None]
        mixed.append(torch.where(swapped, theirs.repeat_interleave(ways, 0), ours.repeat_interleave(ways, 0)))
    images = sample_images(model, mixed)
    return images.view(pairs, ways, *images.shape[1:])
