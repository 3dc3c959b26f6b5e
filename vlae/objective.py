"""From a model's named terms to the one number that is minimized, and to the bound that is reported."""

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
    weights: Sequence[float],
    config: ObjectiveConfig,
    prior: Latents | None = None,
    mmd_weights: Sequence[float] = (),
) -> Tensor:
    """Mean over the batch of reconstruction + sum over rungs of weight * KL + regularizers: scalar, nats per image.

    With weights of 1 and no regularizer this is the negative ELBO.

    Args:
        terms: of one batch.
        weights: of each rung's KL, bottom first.
        config: free bits (Kingma et al. 2016, eq. 15: a rung pays for its mean KL above them only), and the
            weight of the total correlation.
        prior: samples of the model's prior, (B, D_l) per rung; without them there is no MMD.
        mmd_weights: of each rung's MMD, bottom first (`vlae.schedule.mmd_weights`), where `prior` is given.
    """
    kl = terms.kl.mean(0)
    if any(config.free_bits):
        kl = torch.maximum(kl, kl.new_tensor(per_rung(config.free_bits, len(kl))))
    loss = terms.reconstruction.mean() + (kl * kl.new_tensor(list(weights))).sum()
    if config.total_correlation:
        latents = torch.cat(terms.latents, 1)
        whole = DiagonalGaussian(*(torch.cat(parts, 1) for parts in zip(*terms.posteriors, strict=True)))
        loss = loss + config.total_correlation * total_correlation(whole, latents)
    if prior is not None:
        for drawn, wanted, weight in zip(terms.latents, prior, mmd_weights, strict=True):
            if weight:
                loss = loss + weight * mmd(drawn, wanted)
    return loss


def total_correlation(posterior: DiagonalGaussian, latents: Tensor) -> Tensor:
    """KL(q(z) || prod_d q(z_d)) of the batch's aggregate posterior, nats, scalar.

    q(z) is the mixture of the batch's posteriors, evaluated at their samples (B, D): minibatch-weighted
    sampling (Chen et al. 2018, appendix C.1) without its constant, (D - 1) log of the dataset's size.
    """
    pairs = DiagonalGaussian(posterior.mean[None], posterior.log_sigma[None]).log_prob(latents[:, None])  # (B, B, D)
    log_batch = math.log(len(latents))
    joint = torch.logsumexp(pairs.sum(2), 1) - log_batch
    marginals = torch.logsumexp(pairs, 1) - log_batch
    return (joint - marginals.sum(1)).mean()


def mmd(first: Tensor, second: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples (B, D), scalar >= 0.

    Kernel exp(-mean_d(delta^2) / D) and the mean over all pairs, as in the VLAE's reference code
    (Zhao, Song, Ermon 2019, "InfoVAE").
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().mean(2) / a.shape[1]).mean()

    return kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)


@torch.no_grad()
def importance_weighted_bound(
    model: HierarchicalModel, images: Tensor, samples: int, generator: torch.Generator
) -> Tensor:
    """log 1/K sum_k p(x, z_k) / q(z_k|x) with z_k ~ q: nats per image, (B,), float64.

    A lower bound of log p(x) that tightens with K and equals the ELBO at 1 (Burda, Grosse, Salakhutdinov 2016, eq. 8).

    Args:
        model: any.
        images: (B, C, H, W) float32 in [0, 1].
        samples: K.
        generator: of the posterior's noise.
    """
    log_weights = []
    drawn = model.infer(images, model.noise(len(images), generator))
    for sample in range(samples):
        if sample:
            noise = model.noise(len(images), generator)
            # Where no posterior waits for a draw, the inference network runs once.
            drawn = drawn.resample(noise) if model.independent_posteriors else model.infer(images, noise)
        nll = model.likelihood.nll(model.decode(drawn.latents), images)
        log_weights.append(-(nll + drawn.log_ratio).double())
    return torch.logsumexp(torch.stack(log_weights), 0) - math.log(samples)
