"""The pictures of one model: what each rung changes, holds and costs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.codes import Codes
from jobs.figures import bars, curve, heat_map, sheets
from vlae.metrics import active_units, rates
from vlae.models.base import HierarchicalModel
from vlae.redundancy import GibbsCurve, gibbs_strip
from vlae.traversals import manifold, resample_rung

_COLUMNS = 8
_STRIP_STEPS = (1, 2, 5, 10, 20)


@torch.no_grad()
def draw_samples(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> dict[str, bytes]:
    """Pictures that the model makes, PNG by name.

    Blocks (one rung varies, the others stay), the manifold of each rung's first two dims, reconstructions,
    samples, and Gibbs chains on the bottom rung.

    Args:
        model: in evaluation mode.
        images: test images (N, C, H, W) in [0, 1], on the generator's device.
        generator: of all that is drawn.
    """
    base = model.noise(6, generator)
    rungs = list(enumerate(model.latent_dims))
    blocks = [
        (f"rung {rung} varies ({dim} dims)", resample_rung(model, base, rung, _COLUMNS, generator))
        for rung, dim in rungs
    ]
    one = model.noise(1, generator)
    manifolds = [(f"rung {rung}, dims 0 and 1", manifold(model, one, rung, count=12)) for rung, _ in rungs]
    shown = len(images) // _COLUMNS * _COLUMNS or len(images)
    rows = images[:shown].view(-1, min(_COLUMNS, shown), *images.shape[1:])
    copies = model.mean_image(model.means(images[:shown])).view_as(rows)
    samples = model.mean_image(model.prior(model.noise(64, generator))).view(8, 8, *model.image_shape)
    chains = gibbs_strip(model, images[:6], _STRIP_STEPS, generator)
    steps = ", ".join(map(str, _STRIP_STEPS))
    columns = 2 if len(rungs) in (2, 4) else 3
    return {
        "blocks": sheets(blocks, columns=columns),
        "manifolds": sheets(manifolds, columns=columns),
        "reconstructions": sheets([("test images", rows), ("reconstructions", copies)], columns=2),
        "samples": sheets([("samples from the prior", samples)], columns=1),
        "gibbs": sheets([(f"images, then Gibbs steps {steps}", chains)], columns=1),
    }


def draw_scores(
    codes: Codes, information: NDArray[np.float64], names: list[str], gibbs: GibbsCurve | None
) -> dict[str, bytes]:
    """Pictures of the numbers: the rate of each rung, the rung x factor matrix, the Gibbs curve."""
    rungs = [f"rung {rung}" for rung in range(len(codes.samples))]
    active = zip(active_units(codes.kl_dims, threshold=codes.threshold), codes.samples, strict=True)
    notes = [f"{on} of {samples.shape[1]} units active" for on, samples in active]
    figures = {"rates": bars(rates(codes.kl_dims).tolist(), rungs, notes, "rate of each rung", "nats per image")}
    if names:
        figures["information"] = heat_map(information[::-1], rungs[::-1], names, "information / entropy of the factor")
    if gibbs is not None:
        figures["gibbs_curve"] = curve(
            gibbs.steps,
            gibbs.distances,
            {"ancestral samples": gibbs.ancestral, "other test images": gibbs.start},
            "Gibbs chains on rung 0",
            x_label="steps from a test image",
            y_label="Frechet distance to test images",
        )
    return figures
