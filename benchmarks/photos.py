"""Images for the benchmarks, and the same images as a sharded dataset."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.data.manifest import Manifest
from jobs.data.shard_writer import write_tasks
from jobs.data.sources.base import BaseDataConfig, Factor, Sample, Source
from jobs.shard import plan_tasks, publish

Encoding = Literal["npy", "png"]
SIDE = 64
SHAPE = (SIDE, SIDE, 3)
IMAGES_PER_SHARD = 4096
_CHUNK = 1000
# Waves per side and their strength: with a little noise, a PNG of an image is 5 KB, as one of a small photo.
_WAVES, _COLOR, _NOISE = ((3, 45), (5, 22), (9, 9), (16, 2.5)), 0.3, 0.6


def draw_photos(path: Path, count: int, seed: int) -> NDArray[np.uint8]:
    """Write smooth random fields with noise to a .npy file, 1,000 at a time.

    The first images of a longer file equal those of a shorter file.

    Args:
        path: The .npy file.
        count: Number of images.
        seed: Random seed.

    Returns:
        (count, 64, 64, 3) uint8, mapped into memory, with every page touched.
    """
    photos = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    for start in range(0, count, _CHUNK):
        rng = np.random.default_rng([seed, start])
        photos[start : start + _CHUNK] = _fields(rng)[: count - start]
    photos.flush()
    mapped = np.asarray(np.load(path, mmap_mode="r"))  # a plain array, because np.memmap makes every slice slower
    mapped.max()
    return mapped


def _fields(rng: np.random.Generator) -> NDArray[np.uint8]:
    values = 128 + _NOISE * rng.standard_normal((_CHUNK, 3, SIDE, SIDE), np.float32)
    for waves, strength in _WAVES:
        grid = rng.standard_normal((_CHUNK, 4, waves, waves), np.float32)
        smooth = _smooth(waves)
        values += strength * (smooth @ (grid[:, :1] + _COLOR * grid[:, 1:]) @ smooth.T)
    return values.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _smooth(points: int) -> NDArray[np.float32]:
    """Return weights, (64, points), of a smooth interpolation between that many values."""
    position = np.linspace(0, points - 1, SIDE)
    left = np.minimum(position.astype(int), points - 2)
    right_weight = (position - left) ** 2 * (3 - 2 * (position - left))
    weights = np.zeros((SIDE, points), np.float32)
    weights[np.arange(SIDE), left] = 1 - right_weight
    weights[np.arange(SIDE), left + 1] = right_weight
    return weights


def key_of(index: int) -> str:
    """Return the name of an image in every format."""
    return f"{index:08d}"


def label_of(index: int) -> dict[str, int]:
    """Return the label of an image, the same in every format."""
    return {"class": index % 10}


@dataclass(frozen=True)
class PhotoSource(Source):
    """The images as a dataset, with the last image as its test split, because a dataset must have one.

    Attributes:
        images: (N, 64, 64, 3) uint8.
    """

    images: NDArray[np.uint8]
    image_size, channels = SIDE, 3
    factors = (Factor("class", tuple(range(10))),)
    fingerprint = "benchmark"

    @property
    def num_samples(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        last = len(self.images) - 1
        for index in range(start, stop):
            yield Sample(key_of(index), self.images[index], label_of(index), "test" if index == last else "train")


def data_config(encoding: Encoding) -> BaseDataConfig:
    """Return settings that put all images but the last into the train split, in their order."""
    return BaseDataConfig(validation_fraction=0, samples_per_task=IMAGES_PER_SHARD, encoding=encoding)


def write_dataset(images: NDArray[np.uint8], folder: Path, encoding: Encoding) -> Manifest:
    """Write a dataset as the shard stage does, in this process.

    Args:
        images: (N, 64, 64, 3) uint8.
        folder: Folder of the dataset.
        encoding: Encoding of the images.

    Returns:
        Content of the dataset.
    """
    source, config = PhotoSource(images), data_config(encoding)
    tasks = plan_tasks(source, config)
    for _ in write_tasks(source, str(folder), tasks, config):
        pass
    return publish(source, config, str(folder), tasks)
