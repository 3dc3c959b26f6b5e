"""Stacked hierarchical VAE: p(x|z_0) p(z_0|z_1)..., with a bottom-up posterior q(z_0|x) q(z_1|z_0)...

The baseline of Zhao, Song, Ermon 2017 (section 3): its bottom rung alone can hold all there is
to know about x, so nothing makes the rungs above it useful.
"""

from itertools import pairwise

from torch import Tensor, nn

from vlae.config import HvaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import HierarchicalModel, Inference, Latents
from vlae.models.blocks import ConvBlock, Pyramid, UpBlock, mlp, posterior_head, prior_head


class Hvae(HierarchicalModel):
    """HVAE with any number of rungs.

    Args:
        config: depth and dims per rung, width, normalisation, likelihood.
        image_shape: (channels, height, width).
    """

    def __init__(self, config: HvaeConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, image_shape)
        self.pyramid = pyramid = Pyramid(image_shape, config.width)
        dims, hidden, norm, deepest = config.latent_dims, config.hidden, config.norm, pyramid.depth
        self.trunk = nn.Sequential(
            *(ConvBlock(pyramid, level, level + 1, norm) for level in range(deepest)),
            nn.Flatten(),
            mlp([pyramid.size(deepest), hidden, hidden], norm),
            posterior_head(hidden, dims[0]),
        )
        pairs = list(pairwise(dims))
        self.ascend = nn.ModuleList(
            nn.Sequential(mlp([below, hidden, hidden], norm), posterior_head(hidden, above)) for below, above in pairs
        )
        self.descend = nn.ModuleList(
            nn.Sequential(mlp([above, hidden, hidden], norm), prior_head(hidden, below)) for below, above in pairs
        )
        self.expand = nn.Sequential(mlp([dims[0], hidden, hidden], norm), nn.Linear(hidden, pyramid.size(deepest)))
        self.finish = nn.Sequential(
            *(UpBlock(pyramid, level, level - 1, norm) for level in range(deepest, 0, -1)),
            nn.Conv2d(pyramid.width, image_shape[0], 3, 1, 1),
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Bottom-up pass.

        The KL of the top rung is exact. Below it, the prior p(z_l|z_{l+1}) depends on a sample that
        was itself drawn given z_l, so the closed form for two Gaussians would be biased: those rungs
        report the log ratio at the sample, which is unbiased but can be negative for one image.
        """
        posteriors = [DiagonalGaussian.from_parameters(self.trunk(2 * images - 1))]
        latents = [posteriors[0].sample(noise[0])]
        for step, eps in zip(self.ascend, noise[1:], strict=True):
            posteriors.append(DiagonalGaussian.from_parameters(step(latents[-1])))
            latents.append(posteriors[-1].sample(eps))
        kl = [
            q.log_prob(z) - DiagonalGaussian.from_parameters(step(above)).log_prob(z)
            for q, z, step, above in zip(posteriors, latents, self.descend, latents[1:], strict=False)
        ]
        kl.append(posteriors[-1].kl_to_standard())
        return Inference(posteriors, latents, kl)

    def prior(self, noise: Latents) -> Latents:
        """Top-down: z_{L-1} is the noise, each lower rung a sample of p(z_l|z_{l+1})."""
        latents = [noise[-1]]
        for step, eps in zip(reversed(self.descend), reversed(noise[:-1]), strict=True):
            latents.insert(0, DiagonalGaussian.from_parameters(step(latents[0])).sample(eps))
        return latents

    def decode(self, latents: Latents) -> Tensor:
        """The image depends on the bottom rung alone."""
        features = self.expand(latents[0]).view(-1, *self.pyramid.shape(self.pyramid.depth))
        output: Tensor = self.finish(features)
        return output
