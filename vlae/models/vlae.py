"""Variational ladder autoencoder.

All dimensions of all rungs are independent under the prior. Rung l reads the deterministic trunk features h_l through
a network of its own and enters the deterministic decoder at the matching depth, so features that are simple to compute
settle in the bottom rungs and complex ones in the top rungs.

References:
    Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017, section 4, arXiv:1702.08396.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlae.config import VlaeConfig
from vlae.models.architectures import Network
from vlae.models.base import FixedLatents, HierarchicalModel, Inference, Latents
from vlae.models.encoder_decoder import Decoder, Trunk, rung_encoder
from vlae.models.heads import posterior_head
from vlae.models.layers import ImageShape
from vlae.models.rotation import Rotations
from vlae.prior import GeneralizedNormal


class Vlae(HierarchicalModel):
    """VLAE with any number of rungs, as many as its network has; with one rung, a flat VAE."""

    gates: Tensor

    def __init__(self, config: VlaeConfig, image_shape: ImageShape, network: Network) -> None:
        super().__init__(config, image_shape)
        self.trunk = Trunk(network, image_shape, config.norm)
        self.rung_encoders, self.heads = nn.ModuleList(), nn.ModuleList()
        for rung, dim in enumerate(config.latent_dims):
            encoder, size = rung_encoder(network, rung, self.trunk.shapes, config.norm)
            self.rung_encoders.append(encoder)
            self.heads.append(posterior_head(size, dim, config.posterior_scale_link))
        *merge_dims, top_dim = config.latent_dims
        self.decoder = Decoder(network, image_shape, top_dim, merge_dims, config.norm)
        self._prior = GeneralizedNormal(config.prior_shape)
        # Under N(0, I) a rotation changes nothing.
        self.rung_rotations = Rotations(config.latent_dims) if config.prior_shape > 2 else None
        self._feature_levels = network.feature_levels
        # Row 0: inputs, row 1: outputs. A schedule sets the gates at every step; without one they cost no time.
        self.register_buffer("gates", torch.ones(2, len(config.latent_dims)), persistent=False)
        self._gated = False

    def set_gates(self, inputs: Sequence[float], outputs: Sequence[float]) -> None:
        """Scale the input of each rung's encoder and its contribution to the decoder, for progressive training.

        Both lists have a factor in [0, 1] per rung, bottom first.

        References:
            Li, Murkute, Gyawali, Wang: "Progressive Learning and Disentanglement of Hierarchical Representations",
            ICLR 2020, section 3.2, arXiv:2002.10549.
        """
        self.gates.copy_(torch.tensor([list(inputs), list(outputs)]))
        self._gated = True

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Return q(z_l|x) of each rung; rungs are independent given x, so each KL(q(z_l|x) || p(z_l)) is exact."""
        trunk_features = self.trunk(images)
        features = [trunk_features[level] for level in self._feature_levels]
        if self._gated:
            features = [feature * gate for feature, gate in zip(features, self.gates[0], strict=True)]
        posteriors = [
            head(encoder(feature))
            for head, encoder, feature in zip(self.heads, self.rung_encoders, features, strict=True)
        ]
        if self.rung_rotations is not None:
            # Without autocast, because latents and their KL are float32.
            with torch.autocast(images.device.type, enabled=False):
                posteriors = self.rung_rotations(posteriors)
        latents = [q.sample(e) for q, e in zip(posteriors, noise, strict=True)]
        priors = [self._prior] * len(posteriors)
        return Inference(posteriors, priors, latents, [self._prior.kl_from(q) for q in posteriors])

    def prior(self, noise: Latents, fixed: FixedLatents | None = None) -> Latents:
        """Return independent samples z_l ~ p(z_l); a fixed rung changes no other."""
        fixed = fixed or [None] * len(noise)
        return [self._prior.sample(e) if z is None else z for e, z in zip(noise, fixed, strict=True)]

    def decode(self, latents: Latents) -> Tensor:
        """Return the decoder's output; the top rung enters first, and each lower rung at its own depth."""
        if self.rung_rotations is not None:
            with torch.autocast(latents[0].device.type, enabled=False):
                latents = self.rung_rotations.inverse(latents)
        output: Tensor = self.decoder(latents[-1], latents[:-1], self.gates[1] if self._gated else None)
        return output

    @property
    def collapsed_kl(self) -> float:
        """KL of a collapsed latent, the Gaussian nearest to the prior, in nats."""
        return self._prior.collapsed_kl

    @property
    def independent_posteriors(self) -> bool:
        """True, because rungs are independent given the image."""
        return True
