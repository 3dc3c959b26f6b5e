"""Redundancy between rungs: reconstructions from the top rungs alone, and Gibbs chains on the bottom rung alone.

In a stacked VAE p(x|z_0) p(z_0|z_1)..., the chain z_0 ~ q(z_0|x), x ~ p(x|z_0) has the data distribution as its
stationary distribution if the model is optimal, so the rungs above the bottom one are not needed for sampling. Chains
of trained models drift away from the data; the distance after each step measures how fast.

References:
    Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017, section 3, arXiv:1702.08396.
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
    """Frechet distances to one half of the real images, in squared units of the features.

    Attributes:
        steps: Numbers of Gibbs steps.
        distances: Distance of the chains after each of `steps`.
        start: Distance of the other half of the real images, from which the chains start: the error of finite samples.
        ancestral: Distance of as many ancestral samples from the prior.
    """

    steps: tuple[int, ...]
    distances: tuple[float, ...]
    start: float
    ancestral: float


@torch.no_grad()
def top_k_curve(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> NDArray[np.float64]:
    """Return the mean squared error per pixel, (L + 1,) float64, if only the top k = 0..L rungs are inferred.

    The other rungs are drawn from the prior given the top k. k = 0 is an unrelated sample, k = L the full
    reconstruction.

    Args:
        model: Any hierarchical model in evaluation mode.
        images: Images (N, C, H, W) in [0, 1], on the generator's device.
        generator: Random generator of the noise; an image has the same noise for every k.
    """
    rungs = len(model.latent_dims)
    errors = np.zeros(rungs + 1)
    for chunk in torch.split(images, eval_batch_size(images.device)):
        latents = model.infer(chunk, model.noise(len(chunk), generator)).latents
        noise = model.noise(len(chunk), generator)
        for k in range(rungs + 1):
            fixed = [z if rung >= rungs - k else None for rung, z in enumerate(latents)]
            squared_errors = (model.mean_image(model.prior(noise, fixed)) - chunk).double().square()
            errors[k] += squared_errors.flatten(1).mean(1).sum().item()
    return errors / len(images)


@torch.no_grad()
def gibbs_chain(model: HierarchicalModel, images: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the images (N, C, H, W) in [0, 1] after each step z_0 ~ q(z_0|x), x <- mean of p(x|z_0).

    A stacked VAE decodes z_0 alone; a VLAE decodes the other rungs too, drawn from the prior.

    Args:
        model: Any hierarchical model in evaluation mode.
        images: First images (N, C, H, W) of the chains in [0, 1], on the generator's device.
        steps: Number of steps.
        generator: Random generator of posterior and prior noise.
    """
    for _ in range(steps):
        chunks = []
        for chunk in torch.split(images, eval_batch_size(images.device)):
            bottom = model.infer(chunk, model.noise(len(chunk), generator)).latents[0]
            above = model.prior(model.noise(len(chunk), generator))[1:]
            chunks.append(model.mean_image([bottom, *above]))
        images = torch.cat(chunks)
        yield images


def gibbs_sequence(
    model: HierarchicalModel, images: Tensor, steps: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Return the first images of `gibbs_chain` and those after each of `steps`, (N, 1 + len(steps), C, H, W) in [0, 1].

    The arguments are as for `gibbs_chain`, except the numbers of steps, which are at least 1 and rise.
    """
    chain = enumerate(gibbs_chain(model, images, max(steps), generator), start=1)
    return torch.stack([images, *(state for step, state in chain if step in steps)], dim=1)


@torch.no_grad()
def gibbs_curve(
    model: HierarchicalModel,
    images: Tensor,
    features: Callable[[Tensor], Tensor],
    *,
    steps: Sequence[int] = (1, 5, 20),
    generator: torch.Generator,
) -> GibbsCurve:
    """Return the Frechet distances between Gibbs chains and real images, beside those of ancestral samples.

    The chains start from every second image and are compared with the other images, because a mere copy would be at
    distance 0 of its own image and an ancestral sample could not be.

    Args:
        model: Any hierarchical model in evaluation mode.
        images: Images (N, C, H, W) in [0, 1], on the generator's device; many more than features.
        features: Function from images (B, C, H, W) in [0, 1] to features (B, F), such as `RandomFeatures`.
        steps: Numbers of steps, 1 or more, rising.
        generator: Random generator of posterior and prior noise.
    """

    def embed(images: Tensor) -> NDArray[np.float64]:
        chunks = torch.split(images, eval_batch_size(images.device))
        return torch.cat([features(chunk) for chunk in chunks]).double().cpu().numpy()

    start, real = images[::2], embed(images[1::2])

    def distance(images: Tensor) -> float:
        return float(frechet_distance(embed(images), real))

    chain = enumerate(gibbs_chain(model, start, max(steps), generator), start=1)
    return GibbsCurve(
        tuple(steps),
        tuple(distance(state) for step, state in chain if step in steps),
        distance(start),
        distance(sample_images(model, model.noise(len(start), generator))),
    )
