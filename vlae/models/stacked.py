"""Stacks of latent layers, p(x|z_0) p(z_0|z_1)...: the HVAE and the LVAE, and with one layer the flat VAE.

All the image is made of is in z_0; the layers above it are its prior. So the bottom layer alone can hold all
there is to know about x (Zhao, Song, Ermon 2017, section 3).
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from vlae.config import BaseStackedConfig, HvaeConfig, LvaeConfig, VaeConfig
from vlae.gaussian import DiagonalGaussian, SigmaLink
from vlae.models.architectures import Network
from vlae.models.base import FixedLatents, HierarchicalModel, Inference, Latents
from vlae.models.encoder_decoder import Decoder, Encoder
from vlae.models.heads import GaussianHead, posterior_head, prior_head
from vlae.models.layers import Norm, build_layers, dense

HeadMaker = Callable[[int, int, SigmaLink, Norm], GaussianHead]


class StackedVae(HierarchicalModel):
    """The generative half, which the stacks share.

    Args:
        config: dims per rung, units between the rungs, likelihood, normalization.
        image_shape: (channels, height, width).
        network: its trunk is read at the end and its decoder entered at the top; no latent joins on the way.
    """

    def __init__(self, config: BaseStackedConfig, image_shape: tuple[int, int, int], network: Network) -> None:
        super().__init__(config, image_shape)
        self._head_norm: Norm = "batch" if config.batch_norm_heads else "none"
        self.encoder = Encoder(network, image_shape, config.norm)
        self.top_down = nn.ModuleList(
            self._step(config, above, rung + 1, prior_head, below)
            for rung, (below, above) in enumerate(pairwise(config.latent_dims))
        )
        merges = [0] * len(network.merges)
        self.decoder = Decoder(network, image_shape, config.latent_dims[0], merges, config.norm)

    def _step(self, config: BaseStackedConfig, source: int, rung: int, head: HeadMaker, dim: int) -> nn.Sequential:
        """Two dense layers of rung `rung`'s units and a head: (B, source) -> N over (B, dim)."""
        units = config.units[rung]
        layers, _ = build_layers(dense(units, 2), (source,), config.norm)
        return nn.Sequential(layers, head(units, dim, config.posterior_scale_link, self._head_norm))

    def prior(self, noise: Latents, given: FixedLatents | None = None) -> Latents:
        """Top-down: z_{L-1} is the noise, each lower rung a sample of p(z_l|z_{l+1})."""
        fixed = given or [None] * len(noise)
        latents = [noise[-1] if fixed[-1] is None else fixed[-1]]
        for rung in reversed(range(len(noise) - 1)):
            known = fixed[rung]
            latents.insert(0, self.top_down[rung](latents[0]).sample(noise[rung]) if known is None else known)
        return latents

    def decode(self, latents: Latents) -> Tensor:
        """The image depends on the bottom rung alone."""
        output: Tensor = self.decoder(latents[0], [None] * len(self.decoder.joins))
        return output


class Hvae(StackedVae):
    """HVAE: a bottom-up posterior q(z_0|x) q(z_1|z_0)...; with one layer, the flat VAE."""

    def __init__(self, config: HvaeConfig | VaeConfig, image_shape: tuple[int, int, int], network: Network) -> None:
        super().__init__(config, image_shape, network)
        dims = config.latent_dims
        self.head = posterior_head(self.encoder.size, dims[0], config.posterior_scale_link, self._head_norm)
        self.bottom_up = nn.ModuleList(
            self._step(config, below, rung + 1, posterior_head, above)
            for rung, (below, above) in enumerate(pairwise(dims))
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Bottom-up pass.

        The KL of the top rung is exact. Below it, the prior p(z_l|z_{l+1}) depends on a sample that
        was itself drawn given z_l, so the closed form for two Gaussians would be biased: those rungs
        report the log ratio at the sample, which is unbiased but can be negative for one image.
        """
        posteriors: list[DiagonalGaussian] = [self.head(self.encoder(images))]
        latents = [posteriors[0].sample(noise[0])]
        for step, eps in zip(self.bottom_up, noise[1:], strict=True):
            posteriors.append(step(latents[-1]))
            latents.append(posteriors[-1].sample(eps))
        priors = [step(above) for step, above in zip(self.top_down, latents[1:], strict=True)]
        kl = [q.log_prob(z) - p.log_prob(z) for q, p, z in zip(posteriors, priors, latents, strict=False)]
        return Inference(
            posteriors, [*priors, posteriors[-1].standard()], latents, [*kl, posteriors[-1].kl_to_standard()]
        )


class Lvae(StackedVae):
    """LVAE: a deterministic pass upward, then top-down posteriors that merge its evidence with the prior.

    Soenderby et al. 2016, "Ladder Variational Autoencoders", section 2.2.
    """

    def __init__(self, config: LvaeConfig, image_shape: tuple[int, int, int], network: Network) -> None:
        super().__init__(config, image_shape, network)
        sizes = [self.encoder.size, *(config.units[rung] for rung in range(1, len(config.latent_dims)))]
        self.bottom_up = nn.ModuleList(
            build_layers(dense(after, 2), (before,), config.norm)[0] for before, after in pairwise(sizes)
        )
        self.heads = nn.ModuleList(
            posterior_head(size, dim, config.posterior_scale_link, self._head_norm)
            for size, dim in zip(sizes, config.latent_dims, strict=True)
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Upward, then downward: q(z_l|z_{l+1}, x) is the precision-weighted product of evidence and prior.

        Each KL is exact given the rung above, since posterior and prior depend on the same sample of it.
        """
        features = [self.encoder(images)]
        for step in self.bottom_up:
            features.append(step(features[-1]))
        evidence: list[DiagonalGaussian] = [head(part) for head, part in zip(self.heads, features, strict=True)]
        posteriors, priors = [evidence[-1]], [evidence[-1].standard()]
        latents = [evidence[-1].sample(noise[-1])]
        for rung in reversed(range(len(noise) - 1)):
            priors.insert(0, self.top_down[rung](latents[0]))
            posteriors.insert(0, evidence[rung].times(priors[0]))
            latents.insert(0, posteriors[0].sample(noise[rung]))
        kl = [q.kl_to(p) for q, p in zip(posteriors, priors, strict=True)]
        return Inference(posteriors, priors, latents, kl)
