"""What a search maximizes, measured on validation images, which neither training nor the final scores look at."""

import math
from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.data.dataset import ShardedDataset
from jobs.evaluation.encode import Encodings, encode
from jobs.evaluation.inputs import information, sample
from jobs.search.config import Objective
from vlae.metrics import mig_score, mig_sup_score, modularity_score, rung_compactness, rung_modularity
from vlae.models.base import HierarchicalModel
from vlae.total_effects import total_effects

_IMAGES = 2000
_PAIRS = 1000

_OF_MEANS: dict[Objective, Callable[[NDArray[np.float32], NDArray[np.int64]], float]] = {
    "mig": mig_score,
    "mig_sup": mig_sup_score,
    "modularity": modularity_score,
}
_OF_RUNGS: dict[Objective, Callable[[NDArray[np.float64]], float]] = {
    "rung_compactness": rung_compactness,
    "rung_modularity": rung_modularity,
}


def objective_scores(
    model: HierarchicalModel, validation: ShardedDataset, objectives: Collection[Objective], seed: int
) -> dict[str, float]:
    """Those of the objectives that a training does not give itself, as docs/search.md defines them; all but `elbo`.

    NaN where one is not defined, such as the compactness of rungs that tell nothing, or the gap of a single rung.

    Args:
        model: in evaluation mode, on its device.
        validation: at most 2,000 of its images are encoded.
        objectives: which; `elbo` is what the training's own validation gives, and left out here.
        seed: picks images and noise.
    """
    if set(objectives) <= {"elbo"}:
        return {}
    scores: dict[str, float] = {}
    device = next(model.parameters()).device
    if "mean_color_gap" in objectives:
        shares = total_effects(model, _PAIRS, torch.Generator(device).manual_seed(seed)).mean_color_share
        scores["mean_color_gap"] = shares[0] - shares[-1] if len(shares) > 1 else math.nan
    wanted = [name for name in objectives if name in (*_OF_MEANS, *_OF_RUNGS)]
    if wanted:
        shown = sample(validation, _IMAGES, seed)
        codes = encode(model, shown.images, torch.Generator(device).manual_seed(seed))
        scores |= {name: _score(name, codes, shown.factors) for name in wanted}
    return scores


def _score(name: Objective, codes: Encodings, factors: NDArray[np.int64]) -> float:
    if name in _OF_MEANS:
        return float(_OF_MEANS[name](np.concatenate(codes.means, axis=1), factors))
    return float(_OF_RUNGS[name](information(codes, factors)))
