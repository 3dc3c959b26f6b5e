"""Pictures around given images: move one dim of their noise, or swap whole rungs between two of them.

Noise stands for what a rung adds to those above it: e_l = (z_l - mean of p(z_l|above)) / its sigma, or under a prior
that is not normal the same quantile of N(0, 1). So the same moves make sense for ladders, where it is the latents
themselves if the prior is normal, and for stacks, where what hangs below follows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents, rows_at_once
from vlae.traversals import sample_images


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
    for pixels in torch.split(images, rows_at_once(images.device)):
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
