"""The images of the benchmarks, and the same images as a sharded dataset."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.data.config import BaseDataConfig
from jobs.data.manifest import Manifest
from jobs.data.shard_writer import write_parts
from jobs.data.sources.base import Factor, Sample
from jobs.shard import plan_parts, publish

Encoding = Literal["npy", "png"]
SIDE = 64
SHAPE = (SIDE, SIDE, 3)
IMAGES_PER_SHARD = 4096
_CHUNK = 1000
# Waves per side and their strength: with a little noise, a PNG of an image is 5 KB, as one of a small photo.
_WAVES, _COLOR, _NOISE = ((3, 45), (5, 22), (9, 9), (16, 2.5)), 0.3, 0.6


def draw_photos(path: Path, count: int, seed: int) -> NDArray[np.uint8]:
    """Write smooth random fields with noise to a .npy file, a part at a time.

    The first images of a longer file are those of a shorter one.

    Returns:
        (count, 64, 64, 3), mapped into memory, every page of it touched.
    """
    photos = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    for start in range(0, count, _CHUNK):
        rng = np.random.default_rng([seed, start])
        photos[start : start + _CHUNK] = _fields(rng)[: count - start]
    photos.flush()
    mapped = np.asarray(np.load(path, mmap_mode="r"))  # a plain array: np.memmap makes every slice dearer
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
    """(64, points): weights that draw a smooth line through so many values."""
    place = np.linspace(0, points - 1, SIDE)
    left = np.minimum(place.astype(int), points - 2)
    right_weight = (place - left) ** 2 * (3 - 2 * (place - left))
    weights = np.zeros((SIDE, points), np.float32)
    weights[np.arange(SIDE), left] = 1 - right_weight
    weights[np.arange(SIDE), left + 1] = right_weight
    return weights


def key_of(number: int) -> str:
    """Name of an image in every format."""
    return f"{number:08d}"


def label_of(number: int) -> dict[str, int]:
    """What is known of an image, the same in every format."""
    return {"class": number % 10}


@dataclass(frozen=True)
class PhotoSource:
    """The images as a dataset. A dataset must have a test split: it is the last image."""

    images: NDArray[np.uint8]
    image_shape = SHAPE
    factors = (Factor("class", tuple(range(10))),)
    fingerprint = "benchmark"
    sequential = False

    @property
    def num_samples(self) -> int:
        return len(self.images)

    def check(self) -> list[str]:
        return []

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        last = len(self.images) - 1
        for number in range(start, stop):
            yield Sample(key_of(number), self.images[number], label_of(number), "test" if number == last else "train")


def data_config(encoding: Encoding) -> BaseDataConfig:
    """Settings under which all images but the last are the train split, in their order."""
    return BaseDataConfig(validation_fraction=0, samples_per_task=IMAGES_PER_SHARD, encoding=encoding)


def write_dataset(images: NDArray[np.uint8], folder: Path, encoding: Encoding) -> Manifest:
    """What the shard job does, in this process."""
    source, config = PhotoSource(images), data_config(encoding)
    parts = plan_parts(source, config)
    for _ in write_parts(source, str(folder), parts, config):
        pass
    return publish(source, config, str(folder), parts)
