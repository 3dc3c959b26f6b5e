"""The interface of every hierarchical model: `infer`, `prior` and `decode`.

A model has L rungs of latents z_0, ..., z_{L-1}. Rung 0 is next to the pixels, rung L-1 is the top. Training maximizes
the evidence lower bound

    log p(x) >= E_q[log p(x|z)] - sum_l KL_l,    KL_l = E_q[log q(z_l|...) - log p(z_l|...)],

and the models differ in what each factor depends on:

    - `vlae`: p(z) = prod_l p(z_l), q(z|x) = prod_l q(z_l|x); the image depends on all rungs.
    - `hvae`: p(z) = p(z_{L-1}) prod_l p(z_l|z_{l+1}), q(z|x) = q(z_0|x) prod_l q(z_{l+1}|z_l); the image depends on
      z_0 alone.
    - `lvae`: p(z) as in `hvae`, q(z|x) = q(z_{L-1}|x) prod_l q(z_l|z_{l+1}, x); the image depends on z_0 alone.
    - `vae`: p(z_0), q(z_0|x).

Conventions:
    - Lists run over the rungs, bottom first. B is the batch, D_l the number of dimensions of rung l.
    - Images are (B, C, H, W) float32 in [0, 1]. Latents, their densities and their KL are float32, under autocast too.
    - Randomness enters only as standard normal noise, one tensor (B, D_l) per rung, so the caller decides what is
      resampled and what is kept. A sample of a posterior is mean + sigma * noise.
    - KL and log-likelihoods are in nats, of the 8-bit data. bits/dim = nats / (C H W ln 2).

References:
    Kingma, Welling: "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114.
    Sønderby et al.: "Ladder Variational Autoencoders", NIPS 2016, arXiv:1602.02282 (LVAE).
    Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017, arXiv:1702.08396 (VLAE).

Example:
    >>> from vlae import VlaeConfig, build_model
    >>> model = build_model(VlaeConfig(latent_dims=(2, 3), width=8), image_shape=(1, 16, 16), seed=0).eval()
    >>> images, noise = torch.rand(4, 1, 16, 16), model.noise(4, torch.Generator().manual_seed(0))
    >>> inference = model.infer(images, noise)
    >>> [tuple(z.shape) for z in inference.latents], tuple(inference.kl.shape)
    ([(4, 2), (4, 3)], (4, 2))
    >>> tuple(model.mean_image(inference.latents).shape)  # reconstructions
    (4, 1, 16, 16)
    >>> samples = model.mean_image(model.prior(noise))
    >>> same_top_rung = model.mean_image(model.prior(noise, fixed=[None, inference.latents[1]]))
    >>> terms = model(images, noise)
    >>> elbo = -(terms.reconstruction + terms.kl.sum(1))  # (4,), nats
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlae.config import BaseModelConfig
from vlae.gaussian import DiagonalGaussian
from vlae.likelihoods import Likelihood
from vlae.models.layers import ImageShape
from vlae.prior import GeneralizedNormal

Latents = list[Tensor]  # (B, D_l) per rung, bottom first
FixedLatents = Sequence[Tensor | None]  # the same; None for a rung that is sampled


def eval_batch_size(device: torch.device) -> int:
    """Return the batch size without gradients: 64 images fit a CPU's caches, 256 keep a GPU busy."""
    return 64 if device.type == "cpu" else 256


class ElboTerms(NamedTuple):
    """Terms of the ELBO of a batch, each from one sample of the posterior. ELBO = -(reconstruction + kl.sum(1)).

    Attributes:
        reconstruction: -log p(x|z) of each image, (B,), nats.
        kl: KL of each image and rung, (B, L), nats.
        posteriors: q(z_l|...) over (B, D_l) per rung.
        latents: Samples of the posteriors, (B, D_l) per rung.
    """

    reconstruction: Tensor
    kl: Tensor
    posteriors: list[DiagonalGaussian]
    latents: Latents


@dataclass(frozen=True)
class Inference:
    """Result of one pass of the inference network. Lists run over the rungs, bottom first.

    Attributes:
        posteriors: q(z_l | x, the rungs that rung l depends on), over (B, D_l).
        priors: p(z_l | the rungs above) at the samples, over (B, D_l).
        latents: Samples of the posteriors, (B, D_l).
        kl_dims: KL of each dimension, (B, D_l), nats. Each is the exact KL >= 0 given the samples of other rungs, or
            the log ratio at the sample, unbiased but possibly negative, where no closed form exists (`Hvae.infer`).
    """

    posteriors: list[DiagonalGaussian]
    priors: Sequence[DiagonalGaussian | GeneralizedNormal]
    latents: Latents
    kl_dims: Latents

    def resample(self, noise: Latents) -> "Inference":
        """Return other samples of the same posteriors; valid only with `independent_posteriors`."""
        return replace(self, latents=[q.sample(e) for q, e in zip(self.posteriors, noise, strict=True)])

    @property
    def kl(self) -> Tensor:
        """KL of each image and rung, (B, L), nats."""
        return torch.stack([dims.sum(1) for dims in self.kl_dims], dim=1)

    @property
    def log_ratio(self) -> Tensor:
        """Sum over rungs of log q(z_l|...) - log p(z_l|...) at the samples, (B,), nats, for importance weights."""
        rungs = zip(self.posteriors, self.priors, self.latents, strict=True)
        return torch.stack([(q.log_prob(z) - p.log_prob(z)).sum(1) for q, p, z in rungs]).sum(0)


class HierarchicalModel(nn.Module, ABC):
    """A latent variable model with L rungs, z_0 next to the pixels and z_{L-1} at the top.

    A subclass implements `infer`, `prior` and `decode`; training, evaluation, figures and the explorer need no more.
    The module docstring explains notation, shapes and units, with an example.

    Args:
        config: Latent dimensions and likelihood.
        image_shape: (C, H, W).

    Attributes:
        latent_dims: D_l of each rung, bottom first.
        likelihood: p(x|z), applied to the output of `decode`.
    """

    def __init__(self, config: BaseModelConfig, image_shape: ImageShape) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dims = config.latent_dims
        self.likelihood = Likelihood(config.likelihood, image_shape[0], config.likelihood_scale)

    @abstractmethod
    def infer(self, images: Tensor, noise: Latents) -> Inference:
        """Return q(z_l|...) of each rung, one sample z_l, p(z_l|...) at the samples, and KL_l of each dimension, nats.

        Args:
            images: Images x, (B, C, H, W) in [0, 1].
            noise: Standard normal noise (B, D_l) per rung; zeros give the posterior means.
        """

    @abstractmethod
    def prior(self, noise: Latents, fixed: FixedLatents | None = None) -> Latents:
        """Return an ancestral sample z ~ p(z) of all rungs, (B, D_l) per rung.

        Args:
            noise: Independent standard normal noise (B, D_l) per rung.
            fixed: Latents that are not sampled but taken as they are, None for each other rung. Rungs below a fixed
                one are sampled given its value.
        """

    @abstractmethod
    def decode(self, latents: Latents) -> Tensor:
        """Return the decoder's output for latents (B, D_l) per rung, which `likelihood` turns into p(x|z).

        The output (B, C, H, W) is unbounded: the location of p(x|z) before the sigmoid.
        """

    def forward(self, images: Tensor, noise: Latents) -> ElboTerms:
        """Return the ELBO's terms for images (B, C, H, W) in [0, 1] and standard normal noise (B, D_l) per rung."""
        inference = self.infer(images, noise)
        reconstruction = self.likelihood.nll(self.decode(inference.latents), images)
        return ElboTerms(reconstruction, inference.kl, inference.posteriors, inference.latents)

    def mean_image(self, latents: Latents) -> Tensor:
        """Return the mean of p(x|z), or the median of a Laplace, (B, C, H, W) in [0, 1]."""
        return self.likelihood.mean(self.decode(latents))

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        """Return standard normal noise for `count` images, (count, D_l) per rung, on the generator's device."""
        return [torch.randn(count, dim, generator=generator, device=generator.device) for dim in self.latent_dims]

    def infer_means(self, images: Tensor) -> Inference:
        """Return `infer` with zero noise: each latent is its posterior's mean given the means of other rungs."""
        return self.infer(images, [torch.zeros(len(images), dim, device=images.device) for dim in self.latent_dims])

    def means(self, images: Tensor) -> Latents:
        """Return the codes of images: posterior means (B, D_l) per rung, given the means of other rungs."""
        return [posterior.mean for posterior in self.infer_means(images).posteriors]

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def collapsed_kl(self) -> float:
        """KL of a collapsed latent, nats; above 0 if the prior is not Gaussian."""
        return 0.0

    @property
    def independent_posteriors(self) -> bool:
        """Whether no posterior depends on a sample of another rung, so that `infer` has the same means as `means`."""
        return len(self.latent_dims) == 1
