"""The training loss, made of a model's ELBO terms, and the importance-weighted bound of the log-likelihood."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlae.config import ObjectiveConfig
from vlae.gaussian import DiagonalGaussian
from vlae.models.base import ElboTerms, HierarchicalModel, Latents
from vlae.schedule import per_rung


def objective_loss(
    terms: ElboTerms,
    kl_weights: Sequence[float],
    config: ObjectiveConfig,
    prior: Latents | None = None,
    mmd_weights: Sequence[float] = (),
) -> Tensor:
    """Return the training loss of a batch, a scalar in nats per image.

    loss = mean_B[-log p(x|z)] + sum_l w_l max(free bits, mean_B[KL_l]) + total correlation + sum_l v_l MMD_l. With
    weights of 1 and no regularizer the loss is the negative ELBO.

    Args:
        terms: ELBO terms of the batch.
        kl_weights: Weight w_l of each rung's KL, bottom first.
        config: Free bits and the weight of the total correlation.
        prior: Samples (B, D_l) of the model's prior per rung; None switches the MMD off.
        mmd_weights: Weight v_l of each rung's MMD, bottom first (`vlae.schedule.mmd_weights`); used with `prior`.

    References:
        Higgins et al.: "beta-VAE", ICLR 2017 (weights of the KL).
        Kingma et al.: "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016, eq. 15,
        arXiv:1606.04934 (free bits).

    Example:
        >>> posterior = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> terms = ElboTerms(torch.tensor([10.0, 12.0]), torch.tensor([[1.0], [2.0]]), [posterior], [posterior.mean])
        >>> objective_loss(terms, [0.5], ObjectiveConfig())
        tensor(11.7500)
    """
    kl = terms.kl.mean(0)
    if any(config.free_bits):
        kl = torch.maximum(kl, kl.new_tensor(per_rung(config.free_bits, len(kl))))
    loss = terms.reconstruction.mean() + (kl * kl.new_tensor(list(kl_weights))).sum()
    if config.total_correlation:
        joint = DiagonalGaussian(*(torch.cat(parameters, 1) for parameters in zip(*terms.posteriors, strict=True)))
        loss = loss + config.total_correlation * total_correlation(joint, torch.cat(terms.latents, 1))
    if prior is not None:
        for posterior_sample, prior_sample, weight in zip(terms.latents, prior, mmd_weights, strict=True):
            if weight:
                loss = loss + weight * mmd(posterior_sample, prior_sample)
    return loss


def total_correlation(posterior: DiagonalGaussian, latents: Tensor) -> Tensor:
    """Return KL(q(z) || prod_d q(z_d)) of the aggregate posterior in nats, by minibatch-weighted sampling.

    q(z) is the mixture of the batch's posteriors. The constant (D - 1) log(size of the dataset) of the estimator is
    left out.

    Args:
        posterior: Posteriors of the batch, (B, D).
        latents: One sample (B, D) of them.

    References:
        Chen, Li, Grosse, Duvenaud: "Isolating Sources of Disentanglement in Variational Autoencoders", NeurIPS 2018,
        appendix C.1, arXiv:1802.04942.
    """
    pairs = DiagonalGaussian(posterior.mean[None], posterior.log_sigma[None]).log_prob(latents[:, None])  # (B, B, D)
    log_batch = math.log(len(latents))
    joint = torch.logsumexp(pairs.sum(2), 1) - log_batch
    marginals = torch.logsumexp(pairs, 1) - log_batch
    return (joint - marginals.sum(1)).mean()


def mmd(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy, a scalar >= 0, of two samples (B, D) and (B', D).

    The kernel is k(a, b) = exp(-mean_d (a_d - b_d)^2 / D), and the mean is over all pairs, as in the released code of
    the VLAE.

    References:
        Zhao, Song, Ermon: "InfoVAE: Balancing Learning and Inference in Variational Autoencoders", AAAI 2019,
        arXiv:1706.02262.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().mean(2) / a.shape[1]).mean()

    return kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)


@torch.no_grad()
def importance_weighted_bound(
    model: HierarchicalModel, images: Tensor, samples: int, generator: torch.Generator
) -> Tensor:
    """Return log 1/K sum_k p(x, z_k) / q(z_k|x) with z_k ~ q(z|x), (B,) float64, a lower bound of log p(x) in nats.

    The bound tightens with K and is a one-sample ELBO at K = 1.

    Args:
        model: Any hierarchical model.
        images: Images (B, C, H, W) float32 in [0, 1].
        samples: Number of importance samples K.
        generator: Random generator of the posterior's noise, on the images' device.

    References:
        Burda, Grosse, Salakhutdinov: "Importance Weighted Autoencoders", ICLR 2016, eq. 8, arXiv:1509.00519.
    """
    log_weights = []
    inference = model.infer(images, model.noise(len(images), generator))
    for sample in range(samples):
        if sample:
            noise = model.noise(len(images), generator)
            # Where no posterior depends on a sample, the inference network runs only once.
            inference = inference.resample(noise) if model.independent_posteriors else model.infer(images, noise)
        nll = model.likelihood.nll(model.decode(inference.latents), images)
        log_weights.append(-(nll + inference.log_ratio).double())
    return torch.logsumexp(torch.stack(log_weights), 0) - math.log(samples)
