"""Stacked VAEs, p(x|z_0) p(z_0|z_1) ... p(z_{L-1}): the HVAE, the LVAE, and with one layer the flat VAE.

The image depends on z_0 alone, and the rungs above are the prior of z_0. If the model is optimal, the bottom rung
therefore holds everything about x.

References:
    Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017, section 3, arXiv:1702.08396.
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
from vlae.models.layers import ImageShape, Norm, build_layers, dense

HeadMaker = Callable[[int, int, SigmaLink, Norm], GaussianHead]


class StackedVae(HierarchicalModel):
    """Encoder and generative model that all stacked VAEs share.

    The end of the network's trunk is read, and its decoder is entered at the top only.
    """

    def __init__(self, config: BaseStackedConfig, image_shape: ImageShape, network: Network) -> None:
        super().__init__(config, image_shape)
        self._head_norm: Norm = "batch" if config.batch_norm_heads else "none"
        self.encoder = Encoder(network, image_shape, config.norm)
        self.top_down = nn.ModuleList(
            self._conditional(config, above, rung + 1, prior_head, below)
            for rung, (below, above) in enumerate(pairwise(config.latent_dims))
        )
        self.decoder = Decoder(network, image_shape, config.latent_dims[0], [0] * len(network.merges), config.norm)

    def _conditional(
        self, config: BaseStackedConfig, source: int, rung: int, head: HeadMaker, dim: int
    ) -> nn.Sequential:
        """Return a Gaussian over (B, dim) given (B, source): two dense layers of a rung's units and a head."""
        units = config.hidden_dims_per_rung[rung]
        layers, _ = build_layers(dense(units, 2), (source,), config.norm)
        return nn.Sequential(layers, head(units, dim, config.posterior_scale_link, self._head_norm))

    def prior(self, noise: Latents, fixed: FixedLatents | None = None) -> Latents:
        """Return z_{L-1} = noise and z_l ~ p(z_l|z_{l+1}) for the rungs below."""
        fixed = fixed or [None] * len(noise)
        latents = [noise[-1] if fixed[-1] is None else fixed[-1]]
        for rung in reversed(range(len(noise) - 1)):
            value = fixed[rung]
            latents.insert(0, self.top_down[rung](latents[0]).sample(noise[rung]) if value is None else value)
        return latents

    def decode(self, latents: Latents) -> Tensor:
        """Return the decoder's output for the bottom rung; the other rungs have no effect."""
        output: Tensor = self.decoder(latents[0])
        return output


class Hvae(StackedVae):
    """HVAE with the bottom-up posterior q(z_0|x) q(z_1|z_0)...; with one layer, the flat VAE."""

    def __init__(self, config: HvaeConfig | VaeConfig, image_shape: ImageShape, network: Network) -> None:
        super().__init__(config, image_shape, network)
        self.head = posterior_head(
            self.encoder.size, config.latent_dims[0], config.posterior_scale_link, self._head_norm
        )
        self.bottom_up = nn.ModuleList(
            self._conditional(config, below, rung + 1, posterior_head, above)
            for rung, (below, above) in enumerate(pairwise(config.latent_dims))
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Return q(z_0|x), q(z_1|z_0), ... and their samples, bottom-up.

        The KL of the top rung is exact. Below it, the prior p(z_l|z_{l+1}) depends on a sample that was itself drawn
        given z_l, so the closed form for two Gaussians would be biased. Those rungs have the log ratio at the sample,
        which is unbiased but can be negative for a single image.
        """
        posteriors: list[DiagonalGaussian] = [self.head(self.encoder(images))]
        latents = [posteriors[0].sample(noise[0])]
        for conditional, eps in zip(self.bottom_up, noise[1:], strict=True):
            posteriors.append(conditional(latents[-1]))
            latents.append(posteriors[-1].sample(eps))
        priors = [conditional(above) for conditional, above in zip(self.top_down, latents[1:], strict=True)]
        kl = [q.log_prob(z) - p.log_prob(z) for q, p, z in zip(posteriors, priors, latents, strict=False)]
        top = posteriors[-1]
        return Inference(posteriors, [*priors, top.standard()], latents, [*kl, top.kl_to_standard()])


class Lvae(StackedVae):
    """LVAE: a deterministic bottom-up pass, then top-down posteriors that merge its evidence with the prior.

    References:
        Sønderby et al.: "Ladder Variational Autoencoders", NIPS 2016, section 2.2, arXiv:1602.02282.
    """

    def __init__(self, config: LvaeConfig, image_shape: ImageShape, network: Network) -> None:
        super().__init__(config, image_shape, network)
        sizes = [self.encoder.size, *config.hidden_dims_per_rung[1:]]
        self.bottom_up = nn.ModuleList(
            build_layers(dense(after, 2), (before,), config.norm)[0] for before, after in pairwise(sizes)
        )
        self.heads = nn.ModuleList(
            posterior_head(size, dim, config.posterior_scale_link, self._head_norm)
            for size, dim in zip(sizes, config.latent_dims, strict=True)
        )

    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Return q(z_l|z_{l+1}, x), the precision-weighted products of evidence and prior, top-down.

        Each KL is exact given the rung above, because posterior and prior depend on the same sample of that rung.
        """
        features = [self.encoder(images)]
        for layers in self.bottom_up:
            features.append(layers(features[-1]))
        evidence: list[DiagonalGaussian] = [head(h) for head, h in zip(self.heads, features, strict=True)]
        posteriors, priors = [evidence[-1]], [evidence[-1].standard()]
        latents = [evidence[-1].sample(noise[-1])]
        for rung in reversed(range(len(noise) - 1)):
            priors.insert(0, self.top_down[rung](latents[0]))
            posteriors.insert(0, evidence[rung].times(priors[0]))
            latents.insert(0, posteriors[0].sample(noise[rung]))
        kl = [q.kl_to(p) for q, p in zip(posteriors, priors, strict=True)]
        return Inference(posteriors, priors, latents, kl)
