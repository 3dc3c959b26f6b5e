"""Variational ladder autoencoder (Zhao, Song, Ermon 2017, section 4).

p(z) is a product of independent N(0, I). Rung l reads the deterministic trunk feature h_l
(h_0 = x) through a network of its own, and joins the deterministic decoder at the matching
depth: what is simple to compute settles in shallow rungs, what is complex in deep ones.
"""

import torch
from torch import Tensor, nn

from vlae.config import VlaeConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import HierarchicalModel, Inference, Latents
from vlae.models.blocks import ConvBlock, Norm, Pyramid, UpBlock, mlp, posterior_head


def _rung_encoder(pyramid: Pyramid, tap: int, dim: int, hidden: int | None, norm: Norm) -> nn.Sequential:
    """Network of one rung from the trunk at level `tap`; the top rung has `hidden` and runs to the end."""
    stop = min(tap + 1, pyramid.depth)
    layers: list[nn.Module] = [ConvBlock(pyramid, tap, stop, norm)]
    if hidden is None:
        return nn.Sequential(*layers, nn.Flatten(), posterior_head(pyramid.size(stop), dim))
    layers += [ConvBlock(pyramid, level, level + 1, norm) for level in range(stop, pyramid.depth)]
    dense = mlp([pyramid.size(pyramid.depth), hidden, hidden], norm)
    return nn.Sequential(*layers, nn.Flatten(), dense, posterior_head(hidden, dim))


class _Rung(nn.Module):
    """Where rung l < L-1 joins the decoder: features of the rung above, z_l beside them, one level up.

    Args:
        arrive: level of the features that come from above.
        join: level at which z_l is laid beside them; the output is at this level.
    """

    def __init__(self, pyramid: Pyramid, arrive: int, join: int, dim: int, norm: Norm) -> None:
        super().__init__()
        _, self.height, self.width = pyramid.shape(join)
        self.channels = pyramid.width
        self.inject = nn.Linear(dim, self.channels * self.height * self.width)
        levels = range(arrive, join, -1)
        self.descend = nn.Sequential(*(UpBlock(pyramid, level, level - 1, norm) for level in levels))
        self.merge = UpBlock(pyramid, join, join, norm, extra=self.channels)

    def forward(self, above: Tensor, latent: Tensor) -> Tensor:
        """(B, *shape(arrive)), (B, D) -> (B, *shape(join))."""
        plane = self.inject(latent).view(-1, self.channels, self.height, self.width)
        merged: Tensor = self.merge(torch.cat([self.descend(above), plane], 1))
        return merged


class Vlae(HierarchicalModel):
    """VLAE with any number of rungs; one rung makes it a flat VAE.

    Args:
        config: depth and dims per rung, width, normalisation, likelihood.
        image_shape: (channels, height, width).
    """

    def __init__(self, config: VlaeConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__(config, image_shape)
        self.pyramid = pyramid = Pyramid(image_shape, config.width)
        top, deepest = len(config.latent_dims) - 1, pyramid.depth
        # Rung l reads trunk level l while the image can still be halved; rungs beyond that share the
        # deepest level and are told apart by the blocks between them.
        taps = [min(rung, deepest) for rung in range(top + 1)]
        self.trunk = nn.ModuleList(ConvBlock(pyramid, taps[r], taps[r + 1], config.norm) for r in range(top))
        self.rungs = nn.ModuleList(
            _rung_encoder(pyramid, tap, dim, config.hidden if rung == top else None, config.norm)
            for rung, (tap, dim) in enumerate(zip(taps, config.latent_dims, strict=True))
        )
        self.top = nn.Sequential(
            mlp([config.latent_dims[top], config.hidden, config.hidden], config.norm),
            nn.Linear(config.hidden, pyramid.size(deepest)),
        )
        joins = [min(tap + 1, deepest) for tap in taps[:top]] + [deepest]
        self.joints = nn.ModuleList(
            _Rung(pyramid, joins[r + 1], joins[r], config.latent_dims[r], config.norm) for r in range(top)
        )
        self.finish = nn.Sequential(
            *(UpBlock(pyramid, level, level - 1, config.norm) for level in range(joins[0], 0, -1)),
            nn.Conv2d(pyramid.width, image_shape[0], 3, 1, 1),
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Rungs are independent given x, so each KL is exact: KL(q(z_l|x) || N(0, I))."""
        posteriors, features = [], 2 * images - 1
        for rung, encoder in enumerate(self.rungs):
            posteriors.append(DiagonalGaussian.from_parameters(encoder(features)))
            if rung < len(self.trunk):
                features = self.trunk[rung](features)
        latents = [q.sample(e) for q, e in zip(posteriors, noise, strict=True)]
        return Inference(posteriors, latents, [q.kl_to_standard() for q in posteriors])

    def prior(self, noise: Latents) -> Latents:
        """The prior of every rung is N(0, I): the noise itself."""
        return list(noise)

    def decode(self, latents: Latents) -> Tensor:
        """Top rung first, each lower one joining on the way to the pixels."""
        features = self.top(latents[-1]).view(-1, *self.pyramid.shape(self.pyramid.depth))
        for joint, latent in zip(reversed(self.joints), reversed(latents[:-1]), strict=True):
            features = joint(features, latent)
        output: Tensor = self.finish(features)
        return output
