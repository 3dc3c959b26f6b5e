"""What the rungs hold beyond each other: top rungs alone, and the bottom rung alone.

In a stack p(x|z_0) p(z_0|z_1)... the chain z_0 ~ q(z_0|x), x ~ p(x|z_0) has the data distribution as its
stationary one when the model is optimal (Zhao, Song, Ermon 2017, section 3), so the rungs above the
bottom one are not needed to sample. Learnt models drift from it: the curve over the steps shows how fast.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlae.metrics.frechet import frechet_distance
from vlae.models.base import HierarchicalModel, eval_batch_size
from vlae.traversals import sample_images


@dataclass(frozen=True)
class GibbsCurve:
    """Frechet distances to one half of the real images, in squared units of the features."""

    steps: tuple[int, ...]
    distances: tuple[float, ...]  # of the chains after so many steps
    start: float  # of the other half of the images, where the chains start: what the finite sample brings
    ancestral: float  # of as many samples from the prior


@torch.no_grad()
def top_k_curve(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> NDArray[np.float64]:
    """How well the top k rungs alone reconstruct: those from q(z|x), the rest from the prior given them.

    Args:
        model: any hierarchical model, in evaluation mode.
        images: (N, C, H, W) in [0, 1], on the generator's device.
        generator: of the posterior's and the prior's noise; each image has the same for every k.

    Returns:
        (L + 1,) float64, mean squared error per pixel for k = 0..L: k = 0 is an unrelated sample,
        k = L the full reconstruction.
    """
    rungs = len(model.latent_dims)
    errors = np.zeros(rungs + 1)
    for chunk in torch.split(images, eval_batch_size(images.device)):
        latents = model.infer(chunk, model.noise(len(chunk), generator)).latents
        noise = model.noise(len(chunk), generator)
        for kept in range(rungs + 1):
            given = [latent if rung >= rungs - kept else None for rung, latent in enumerate(latents)]
            copies = model.mean_image(model.prior(noise, given))
            errors[kept] += (copies - chunk).double().square().flatten(1).mean(1).sum().item()
    return errors / len(images)


@torch.no_grad()
def gibbs_chain(model: HierarchicalModel, images: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Alternate z_0 ~ q(z_0|x) and x <- mean of p(x|z_0), with the other rungs from the prior.

    A stack does not look at the other rungs once it has z_0; a VLAE does.

    Args:
        model: any hierarchical model, in evaluation mode.
        images: where the chains start, (N, C, H, W) in [0, 1], on the generator's device.
        steps: how many.
        generator: of all that is drawn.

    Yields:
        The images (N, C, H, W) in [0, 1] after each step.
    """
    for _ in range(steps):
        images = torch.cat(
            [_gibbs_step(model, chunk, generator) for chunk in torch.split(images, eval_batch_size(images.device))]
        )
        yield images


def gibbs_strip(model: HierarchicalModel, images: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor:
    """Chains as a picture: each image, and what it is after so many steps.

    Args:
        model: any hierarchical model, in evaluation mode.
        images: (N, C, H, W) in [0, 1], on the generator's device.
        steps: counted from 1, rising.
        generator: of all that is drawn.

    Returns:
        (N, 1 + len(steps), C, H, W) in [0, 1]; column 0 is the images.
    """
    chain = enumerate(gibbs_chain(model, images, max(steps), generator), start=1)
    return torch.stack([images, *(after for step, after in chain if step in steps)], dim=1)


@torch.no_grad()
def gibbs_curve(
    model: HierarchicalModel,
    images: Tensor,
    features: Callable[[Tensor], Tensor],
    *,
    steps: Sequence[int] = (1, 5, 20),
    generator: torch.Generator,
) -> GibbsCurve:
    """How far Gibbs chains on the bottom rung are from the data, and ancestral samples beside them.

    The chains start from every second image and are compared with the others: compared with the images
    they come from, a copy would be at distance 0, and an ancestral sample could not be.

    Args:
        model: any hierarchical model, in evaluation mode.
        images: (N, C, H, W) in [0, 1], on the generator's device; many more than features.
        features: images (B, C, H, W) in [0, 1] to (B, F), such as `vlae.features.RandomFeatures`.
        steps: after which to look, counted from 1, rising.
        generator: of all that is drawn.
    """
    start, real = images[::2], _features(features, images[1::2])

    def distance(found: Tensor) -> float:
        return float(frechet_distance(_features(features, found), real))

    chain = enumerate(gibbs_chain(model, start, max(steps), generator), start=1)
    return GibbsCurve(
        tuple(steps),
        tuple(distance(after) for step, after in chain if step in steps),
        distance(start),
        distance(sample_images(model, model.noise(len(start), generator))),
    )


def _gibbs_step(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> Tensor:
    bottom = model.infer(images, model.noise(len(images), generator)).latents[0]
    above = model.prior(model.noise(len(images), generator))[1:]
    return model.mean_image([bottom, *above])


def _features(features: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float64]:
    return (
        torch.cat([features(chunk) for chunk in torch.split(images, eval_batch_size(images.device))])
        .double()
        .cpu()
        .numpy()
    )
