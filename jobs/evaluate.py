"""The evaluate job: scores and pictures of one checkpoint on the test split, as a Ray task."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.checkpoint import load_model
from jobs.cluster import Resources, task_result
from jobs.config import EvaluateConfig
from jobs.data.order import permute
from jobs.data.shard_files import DataAccess
from jobs.data.split import ShardedSplit
from jobs.errors import UserError
from jobs.figures import heat_map, sheets
from jobs.loop import to_device
from vlae.metrics import mig_score, mig_sup_score, rung_information
from vlae.models.base import HierarchicalModel, Latents
from vlae.traversals import Effects, resample_rung, total_effects

_BATCH = 256
_ACTIVE_NATS = 0.01  # a latent dimension with less KL than this is off
_EFFECT_PAIRS = 1000
_INFORMATION_IMAGES = 3000  # every one of them is compared with every other
_MOST_CPUS = 8


@dataclass(frozen=True)
class Evaluation:
    """What is known of a checkpoint. Every score is finite."""

    scores: dict[str, float]
    figures: dict[str, bytes]  # name without .png -> PNG


@dataclass(frozen=True)
class Codes:
    """The test split as the model sees it; lists run over the rungs, bottom first."""

    means: list[NDArray[np.float32]]  # (N, D_l), each rung given the means below it
    samples: list[NDArray[np.float32]]  # (N, D_l)
    centres: list[NDArray[np.float32]]  # means of the posteriors that the samples were drawn from
    log_sigmas: list[NDArray[np.float32]]
    kl_dims: list[NDArray[np.float32]]  # (N, D_l) nats
    reconstruction: NDArray[np.float32]  # (N,) nats


def run_evaluation(
    checkpoint: Path, access: DataAccess, config: EvaluateConfig, resources: Resources, *, use_gpu: bool
) -> Evaluation:
    """Evaluate in a Ray task, on a GPU if there is one and it may be used.

    Raises:
        UserError: the checkpoint or the data is missing or damaged.
    """
    device = "cuda" if use_gpu and resources.num_gpus else "cpu"
    # A node with a GPU may have few CPUs, and the largest node no GPU.
    cpus = max(1, min(resources.node_cpus, _MOST_CPUS)) if device == "cpu" else 1
    task = ray.remote(_evaluate_task).options(num_cpus=cpus, num_gpus=int(device == "cuda"), max_retries=1)
    result: Evaluation = task_result(task.remote(checkpoint, access, config, cpus, device))
    return result


def _evaluate_task(
    checkpoint: Path, access: DataAccess, config: EvaluateConfig, num_threads: int, device: str
) -> Evaluation:
    torch.set_num_threads(num_threads)
    return evaluate_model(load_model(checkpoint).to(device), ShardedSplit(access, "test"), config)


def evaluate_model(model: HierarchicalModel, data: ShardedSplit, config: EvaluateConfig) -> Evaluation:
    """All scores and pictures.

    Args:
        model: in evaluation mode, on its device.
        data: the split to score, or `config.num_images` samples of it that the seed picks.
        config: how many images, and the seed of all that is drawn.

    Raises:
        UserError: the images do not fit the model.
    """
    if data.image_shape != model.image_shape:
        raise UserError(f"the model takes images of {model.image_shape}, the test split has {data.image_shape}")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    # A sample of the split: tars follow the order of the source, which may be sorted by class.
    numbers = permute(np.arange(min(len(data), config.num_images)), len(data), config.seed)
    images, factors = data.gather(numbers)
    codes = encode(model, images, generator)
    names = [factor.name for factor in data.manifest.factors]
    few = slice(_INFORMATION_IMAGES)
    information = np.stack(
        [
            rung_information(samples[few], centres[few], log_sigmas[few], factors[few])
            for samples, centres, log_sigmas in zip(codes.samples, codes.centres, codes.log_sigmas, strict=True)
        ]
    )
    scores = likelihood_scores(codes, math.prod(model.image_shape), discrete=model.likelihood.kind != "bernoulli")
    scores |= factor_scores(codes, factors) | information_scores(information, names)
    scores |= effect_scores(total_effects(model, _EFFECT_PAIRS, generator))
    finite = {name: float(value) for name, value in scores.items() if math.isfinite(value)}
    figures = draw_figures(model, to_device(images[:32], device), generator)
    if names:
        rows = [f"rung {rung}" for rung in reversed(range(len(information)))]
        figures["information"] = heat_map(information[::-1], rows, names, "information / entropy of the factor")
    return Evaluation(finite, figures)


@torch.no_grad()
def encode(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> Codes:
    """Posterior means and samples of uint8 images (N, C, H, W), and the terms of their ELBO."""
    parts: dict[str, list[Latents]] = {name: [] for name in ("means", "samples", "centres", "log_sigmas", "kl_dims")}
    reconstruction = []
    for start in range(0, len(images), _BATCH):
        pixels = to_device(images[start : start + _BATCH], generator.device)
        drawn = model.infer(pixels, model.noise(len(pixels), generator))
        reconstruction.append(model.likelihood.nll(model.decode(drawn.latents), pixels))
        parts["means"].append(model.means(pixels))
        parts["samples"].append(drawn.latents)
        parts["centres"].append([posterior.mean for posterior in drawn.posteriors])
        parts["log_sigmas"].append([posterior.log_sigma for posterior in drawn.posteriors])
        parts["kl_dims"].append(drawn.kl_dims)
    rungs = {
        name: [torch.cat(rung).cpu().numpy() for rung in zip(*batches, strict=True)] for name, batches in parts.items()
    }
    return Codes(**rungs, reconstruction=torch.cat(reconstruction).cpu().numpy())


def likelihood_scores(codes: Codes, dimensions: int, *, discrete: bool) -> dict[str, float]:
    """ELBO and its terms in nats per image, what each rung carries, and bits/dim where p(x|z) is of 8-bit data."""
    per_rung = [float(dims.sum(1).mean()) for dims in codes.kl_dims]
    reconstruction, kl = float(codes.reconstruction.mean()), sum(per_rung)
    scores = {
        "elbo": -(reconstruction + kl),
        "reconstruction": reconstruction,
        "kl": kl,
    }
    if discrete:
        scores["bits_per_dim"] = (reconstruction + kl) / dimensions / math.log(2)
    for rung, dims in enumerate(codes.kl_dims):
        scores[f"kl/rung_{rung}"] = per_rung[rung]
        scores[f"active_units/rung_{rung}"] = float((dims.mean(0) > _ACTIVE_NATS).sum())
    return scores


def factor_scores(codes: Codes, factors: NDArray[np.int64]) -> dict[str, float]:
    """MIG and MIG-sup of all rungs' means together; NaN where there are no factors."""
    means = np.concatenate(codes.means, axis=1)
    return {"mig": mig_score(means, factors), "mig_sup": mig_sup_score(means, factors)}


def information_scores(information: NDArray[np.float64], names: list[str]) -> dict[str, float]:
    """Share of each factor that each rung tells, by name."""
    return {
        f"information/rung_{rung}/{name}": float(information[rung, column])
        for rung in range(len(information))
        for column, name in enumerate(names)
    }


def effect_scores(effects: Effects) -> dict[str, float]:
    """Total effect of each rung on the image, and the part of it that is mean colour."""
    pairs = enumerate(zip(effects.pixels, effects.colour_share, strict=True))
    scores: dict[str, float] = {}
    for rung, (pixels, share) in pairs:
        scores |= {f"effect/rung_{rung}": pixels, f"colour_share/rung_{rung}": share}
    return scores


@torch.no_grad()
def draw_figures(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> dict[str, bytes]:
    """The block figure, reconstructions of `images` (32, C, H, W), and samples."""
    base = model.noise(6, generator)
    blocks = [
        (f"rung {rung} varies ({dim} dims)", resample_rung(model, base, rung, 8, generator))
        for rung, dim in enumerate(model.latent_dims)
    ]
    shown = len(images) // 8 * 8 or len(images)
    images = images[:shown]
    rows = images.view(-1, min(8, shown), *images.shape[1:])
    copies = model.mean_image(model.means(images)).view_as(rows)
    samples = model.mean_image(model.prior(model.noise(64, generator))).view(8, 8, *model.image_shape)
    return {
        "blocks": sheets(blocks, columns=2 if len(blocks) in (2, 4) else 3),
        "reconstructions": sheets([("test images", rows), ("reconstructions", copies)], columns=2),
        "samples": sheets([("samples from the prior", samples)], columns=1),
    }
