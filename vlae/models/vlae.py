"""Variational ladder autoencoder (Zhao, Song, Ermon 2017, section 4).

Under p(z) all dimensions are independent: N(0, 1), or with a flatter top. Rung l reads the deterministic trunk
feature h_l through a network of its own, and joins the deterministic decoder at the matching depth: what is
simple to compute settles in shallow rungs, what is complex in deep ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlae.config import VlaeConfig
from vlae.models.architectures import Network
from vlae.models.base import FixedLatents, HierarchicalModel, Inference, Latents
from vlae.models.encoder_decoder import Decoder, Trunk, rung_reader
from vlae.models.heads import posterior_head
from vlae.models.rotation import Rotations
from vlae.prior import GeneralizedNormal


class Vlae(HierarchicalModel):
    """VLAE with any number of rungs; one rung makes it a flat VAE.

    Args:
        config: dims per rung, prior, likelihood, normalization.
        image_shape: (channels, height, width).
        network: with as many rungs.
    """

    fade: Tensor

    def __init__(self, config: VlaeConfig, image_shape: tuple[int, int, int], network: Network) -> None:
        super().__init__(config, image_shape)
        *joining, top = config.latent_dims
        self.trunk = Trunk(network, image_shape, config.norm)
        self.rung_encoders, self.heads = nn.ModuleList(), nn.ModuleList()
        for rung, dim in enumerate(config.latent_dims):
            reader, size = rung_reader(network, rung, self.trunk.shapes, config.norm)
            self.rung_encoders.append(reader)
            self.heads.append(posterior_head(size, dim, config.posterior_scale_link))
        self.decoder = Decoder(network, image_shape, top, joining, config.norm)
        self._prior = GeneralizedNormal(config.prior_shape)
        # Under N(0, I) all turns of a rung are the same.
        self.rotations = Rotations(config.latent_dims) if config.prior_shape > 2 else None
        self._taps = network.feature_levels
        # Factors of what each rung reads and of what it lays into the decoder. A schedule that moves them sets them
        # at every step; without one they cost nothing.
        self.register_buffer("fade", torch.ones(2, len(config.latent_dims)), persistent=False)
        self._fading = False

    def set_gates(self, reads: Sequence[float], writes: Sequence[float]) -> None:
        """Scale what each rung reads and writes, bottom first (Li et al. 2020, section 3.2)."""
        self.fade.copy_(torch.tensor([list(reads), list(writes)]))
        self._fading = True

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Rungs are independent given x, so each KL is exact: KL(q(z_l|x) || p(z_l))."""
        features = self.trunk(images)
        read = [features[tap] for tap in self._taps]
        if self._fading:
            read = [feature * scale for feature, scale in zip(read, self.fade[0], strict=True)]
        posteriors = [
            head(reader(feature)) for head, reader, feature in zip(self.heads, self.rung_encoders, read, strict=True)
        ]
        if self.rotations is not None:
            # Latents and their KL stay float32.
            with torch.autocast(images.device.type, enabled=False):
                posteriors = self.rotations(posteriors)
        latents = [q.sample(e) for q, e in zip(posteriors, noise, strict=True)]
        priors = [self._prior] * len(posteriors)
        return Inference(posteriors, priors, latents, [self._prior.kl_from(q) for q in posteriors])

    @property
    def collapsed_kl(self) -> float:
        """KL of the Gaussian nearest to the prior, nats per latent."""
        return self._prior.collapsed_kl

    @property
    def independent_posteriors(self) -> bool:
        """Rungs are independent given x."""
        return True

    def prior(self, noise: Latents, given: FixedLatents | None = None) -> Latents:
        """No rung depends on another."""
        known = given or [None] * len(noise)
        return [self._prior.sample(e) if z is None else z for e, z in zip(noise, known, strict=True)]

    def decode(self, latents: Latents) -> Tensor:
        """Top rung first, each lower one joining on the way to the pixels."""
        if self.rotations is not None:
            with torch.autocast(latents[0].device.type, enabled=False):
                latents = self.rotations.inverse(latents)
        output: Tensor = self.decoder(latents[-1], latents[:-1], self.fade[1] if self._fading else None)
        return output
