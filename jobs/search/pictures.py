"""Pictures of the trials of a search, drawn in Ray tasks once their CPUs are free."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from jobs.checkpoint import load_model
from jobs.checkpoints import Checkpoints
from jobs.cluster import task_result
from jobs.data.shard_files import DataAccess
from jobs.data.split import ShardedSplit
from jobs.device import to_device
from jobs.errors import UserError
from jobs.measures import sample
from jobs.pictures import draw_samples

_IMAGES = 32
_SEED = 2


def draw_trials(
    places: Mapping[int, str], access: DataAccess, at_once: int, *, use_gpu: bool
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Draw what the newest checkpoint of each trial makes, as the evaluation does, of validation images.

    Args:
        places: of the checkpoints, by the trial's number.
        access: of the dataset.
        at_once: tasks that are under way together.
        use_gpu: whether each takes one.

    Yields:
        Number and PNGs by name, as they are ready; no PNG where there is no whole checkpoint.
    """
    draw = ray.remote(_draw).options(num_cpus=1, num_gpus=int(use_gpu), max_retries=1)
    waiting = list(places.items())
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, place = waiting.pop(0)
            running[draw.remote(place, access, "cuda" if use_gpu else "cpu")] = number
        (ready, *_), _ = ray.wait(list(running))
        yield running.pop(ready), task_result(ready)


def _draw(place: str, access: DataAccess, device: str) -> dict[str, bytes]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        checkpoint = Checkpoints(place).newest(Path(folder))
        if checkpoint is None:
            return {}
        try:
            model = load_model(checkpoint).to(device)
        except UserError:
            return {}
    images = to_device(sample(ShardedSplit(access, "validation"), _IMAGES, _SEED).images, torch.device(device))
    return draw_samples(model, images, torch.Generator(device).manual_seed(_SEED))
