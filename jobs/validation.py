"""The ELBO of the same few validation images with the same noise, every time."""

import numpy as np
import torch

from jobs.data.manifest import Manifest
from jobs.data.mixing import mix64
from jobs.data.order import permute
from jobs.data.shard_files import DataAccess
from jobs.data.split import ShardedSplit
from jobs.device import to_device
from vlae.models.base import HierarchicalModel

_IMAGES = 512
_STEP = 2**62  # keys the noise of validation: a step that training never reaches


class Validation:
    """Scores a model while it is trained.

    Args:
        access: of the dataset.
        manifest: of the same; it may have no validation split.
        device: of the model.
        seed: of the images' choice and of the noise.
    """

    def __init__(self, access: DataAccess, manifest: Manifest, device: torch.device, seed: int) -> None:
        self._images: torch.Tensor | None = None
        if not manifest.num_samples("validation"):
            return
        data = ShardedSplit(access, "validation")
        numbers = permute(np.arange(min(len(data), _IMAGES)), len(data), seed)
        self._images = to_device(data.gather(numbers)[0], device)
        self._key = int(mix64(seed, _STEP)) >> 1

    @torch.no_grad()
    def score(self, model: HierarchicalModel) -> dict[str, float]:
        """Negative reconstruction minus KL, nats per image; nothing if there is no validation split."""
        if self._images is None:
            return {}
        generator = torch.Generator(self._images.device).manual_seed(self._key)
        mode = model.training
        terms = model.eval()(self._images, model.noise(len(self._images), generator))
        model.train(mode)
        return {"validation/elbo": -float((terms.reconstruction + terms.kl.sum(1)).mean())}
