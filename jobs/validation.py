"""The ELBO of the same few validation images with the same noise, every time."""

import math

import numpy as np
import torch
import torch.distributed as dist

from jobs.data.order import permute, worker_slices
from jobs.data.split import ShardedSplit
from jobs.device import to_device
from jobs.step import slice_noise
from jobs.training import Training
from vlae.models.base import HierarchicalModel

_IMAGES = 512
_SLICES = 8  # that the workers share; there may be more workers
_STEP = 2**62  # keys the noise of validation: a step that training never reaches


class Validation:
    """Scores a model while it is trained: images and noise are the same for any number of workers.

    Args:
        training: of which this is one worker; its dataset may have no validation split.
    """

    def __init__(self, training: Training) -> None:
        job, self._worker = training.job, training.worker
        self._seed = job.seed
        self._count = min(_IMAGES, training.loader.data.manifest.num_samples("validation"))
        self._slices: dict[int, torch.Tensor] = {}
        if not self._count:
            return
        data = ShardedSplit(job.data, "validation")
        numbers = np.array_split(permute(np.arange(self._count), len(data), job.seed), _SLICES)
        world_size = min(self._worker.world_size, _SLICES)
        if self._worker.rank < world_size:
            for number in worker_slices(_SLICES, self._worker.rank, world_size):
                if len(numbers[number]):
                    self._slices[number] = to_device(data.gather(numbers[number])[0], self._worker.device)

    @torch.no_grad()
    def score(self, model: HierarchicalModel) -> dict[str, float]:
        """Negative reconstruction minus KL, nats per image; nothing if there is no validation split.

        Every worker must call this; all get the same answer.
        """
        if not self._count:
            return {}
        device = self._worker.device
        sums = torch.zeros(_SLICES, dtype=torch.float64, device=device)
        mode = model.training
        model.eval()
        for number, images in self._slices.items():
            terms = model(images, slice_noise(model, range(number, number + 1), len(images), self._seed, _STEP, device))
            sums[number] = (terms.reconstruction + terms.kl.sum(1)).double().sum()
        model.train(mode)
        if self._worker.world_size > 1:
            dist.all_reduce(sums)  # each number comes from one worker alone, so that the order does not matter
        total = math.fsum(sums.tolist())
        return {"validation/elbo": -total / self._count}
