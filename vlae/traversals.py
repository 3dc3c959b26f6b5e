"""Latent traversals: images from noise in which some entries are changed and all others are kept.

Everything here works on the standard normal noise e of a model's prior, not on its latents. `prior` maps noise to
latents, so in a stacked VAE the rungs below a changed one follow it, and every change is in standard deviations. Noise
comes from a generator (`HierarchicalModel.noise`) or from images (`infer_noise`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents, eval_batch_size


@torch.no_grad()
def sample_images(model: HierarchicalModel, noise: Latents) -> Tensor:
    """Return the mean images (B, C, H, W) in [0, 1] of noise (B, D_l) per rung, in small batches to limit memory."""
    chunks = zip(*(torch.split(rung, eval_batch_size(rung.device)) for rung in noise), strict=True)
    return torch.cat([model.mean_image(model.prior(list(chunk))) for chunk in chunks])


@torch.no_grad()
def infer_noise(model: HierarchicalModel, images: Tensor) -> Latents:
    """Return the noise, (B, D_l) per rung, from which the prior makes the posterior means of images (B, C, H, W).

    The result is in standard deviations of N(0, 1). `model.prior(infer_noise(model, x))` equals `model.means(x)`.
    """
    chunks = []
    for chunk in torch.split(images, eval_batch_size(images.device)):
        inference = model.infer_means(chunk)
        chunks.append([p.noise(q.mean) for q, p in zip(inference.posteriors, inference.priors, strict=True)])
    return [torch.cat(rung) for rung in zip(*chunks, strict=True)]


def resample_rung(model: HierarchicalModel, base: Latents, rung: int, count: int, generator: torch.Generator) -> Tensor:
    """Return mean images (R, count, C, H, W) in [0, 1] that differ only in the noise of one rung.

    Args:
        model: Any hierarchical model in evaluation mode.
        base: Noise of R starting images, (R, D_l) per rung.
        rung: Index of the rung whose noise is resampled, 0 at the bottom.
        count: Number of images per starting image.
        generator: Random generator of the new noise; all rows share it, so a column is one draw.
    """
    rows = len(base[0])
    noise = [values.repeat_interleave(count, dim=0) for values in base]
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
    """Return a grid of images over the square [-span, span]^2 of two dimensions of one rung's noise.

    Args:
        model: Any hierarchical model in evaluation mode.
        base: Noise (R, D_l) per rung. R = 1: all tiles have the same other rungs. R = number of tiles: each tile has
            its own. The rung's own other dimensions are always those of the first row.
        rung: Index of the traversed rung, 0 at the bottom.
        count: Number of tiles along a side.
        dims: Dimension that varies within a row, and dimension that varies between rows; a rung of one dimension has
            one row.
        span: Range in standard deviations of the noise.

    Returns:
        Mean images (count, count, C, H, W) in [0, 1], or (1, count, C, H, W) for a rung of one dimension.

    Raises:
        ValueError: `base` has neither one row nor one per tile, or the rung lacks the dimensions.

    References:
        Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017,
        arXiv:1702.08396.
    """
    width = base[rung].shape[1]
    chosen = dims if width > 1 else (0,)
    if len(set(chosen)) < len(chosen) or not all(0 <= dim < width for dim in chosen):
        raise ValueError(f"dims: {dims} is no pair of the {width} dimensions of rung {rung}. Pass two different ones.")
    tiles = count ** len(chosen)
    if len(base[0]) not in (1, tiles):
        raise ValueError(f"base: {len(base[0])} rows for {tiles} tiles. Pass 1 row, or one per tile.")
    axis = torch.linspace(-span, span, count, device=base[rung].device)
    noise = [values.expand(tiles, -1) for values in base]
    noise[rung] = base[rung][:1].repeat(tiles, 1)
    # The last factor of a Cartesian product varies fastest, so the reversed dims put the first one within a row.
    noise[rung][:, chosen[::-1]] = torch.cartesian_prod(*[axis] * len(chosen)).view(tiles, -1)
    images = sample_images(model, noise)
    return images.view(-1, count, *images.shape[1:])


def latent_traversals(
    model: HierarchicalModel, noise: Latents, rung: int, dims: Sequence[int], positions: Tensor
) -> Tensor:
    """Return mean images (len(dims), P, C, H, W) in [0, 1] of one image, changing one dimension of a rung at a time.

    Args:
        model: Any hierarchical model in evaluation mode.
        noise: Noise of one image, (1, D_l) per rung (`infer_noise`).
        rung: Index of the traversed rung, 0 at the bottom.
        dims: Traversed dimensions.
        positions: Values of each dimension, (len(dims), P), in standard deviations.

    Raises:
        ValueError: The noise is not that of one image, or the positions are not one row per dimension.
    """
    if len(noise[0]) != 1 or len(positions) != len(dims):
        raise ValueError(
            f"noise, positions: {len(noise[0])} images and {len(positions)} rows of positions for {len(dims)} dims. "
            "Pass the noise of one image and one row per dimension."
        )
    count, steps = positions.shape
    changed = [values.expand(count * steps, -1) for values in noise]
    columns = torch.tensor(list(dims), device=positions.device).repeat_interleave(steps)
    changed[rung] = changed[rung].scatter(1, columns[:, None], positions.reshape(-1, 1))
    images = sample_images(model, changed)
    return images.view(count, steps, *images.shape[1:])


def swap_rungs(model: HierarchicalModel, first: Latents, second: Latents) -> Tensor:
    """Return mean images (R, 2^L, C, H, W) in [0, 1] of every combination of the L rungs of two images.

    In combination i, rung l is from the second image if bit l of i is set: combination 0 is the first image,
    combination 2^L - 1 the second. The noise of R first and of R second images is (R, D_l) per rung.
    """
    pairs, combinations = len(first[0]), 2 ** len(first)
    index = torch.arange(combinations, device=first[0].device).repeat(pairs)
    noise = []
    for rung, (a, b) in enumerate(zip(first, second, strict=True)):
        from_second = ((index >> rung) & 1).bool()[:, None]
        noise.append(
            torch.where(from_second, b.repeat_interleave(combinations, 0), a.repeat_interleave(combinations, 0))
        )
    images = sample_images(model, noise)
    return images.view(pairs, combinations, *images.shape[1:])
