"""Cars3D: rendered car models, streamed out of the publisher's tar.gz.

References:
    Reed, Zhang, Zhang, Lee: Deep Visual Analogy-Making, NeurIPS 2015.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.images import resize_square
from jobs.data.formats.mat5 import open_mat_array
from jobs.data.formats.published import PublishedFile, invalid_file, require, warnings
from jobs.data.formats.tar_stream import tar_members
from jobs.data.sources.base import BaseFilesConfig, Factor, ImageSize, Sample, Source, root_field
from jobs.errors import UserError

FILES = (
    PublishedFile(
        "nips2015-analogy-data.tar.gz",
        None,
        "4e866a7919c1beedf53964e6f7a23686",
        "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz",
    ),
)
AZIMUTHS, ELEVATIONS = 24, 4
VIEWS = ELEVATIONS * AZIMUTHS  # images of a car
_SHAPE = (128, 128, 3, AZIMUTHS, ELEVATIONS)
_CAR = re.compile(r"car_(\d{1,9})_mesh\.mat")


class Cars3dConfig(BaseFilesConfig):
    """Cars3D: 17,568 color images of 183 cars from 24 azimuths and 4 elevations."""

    name: Literal["cars3d"] = "cars3d"
    root: AbsolutePath = root_field("cars3d", "nips2015-analogy-data.tar.gz")
    image_size: ImageSize = Field(64, description="height and width in pixels after resizing; 128: unchanged")

    def open(self) -> "Cars3d":
        return Cars3d(self.root, self.image_size)


@dataclass(frozen=True)
class Cars3d(Source):
    """Source of the cars in color, 0 to 255, in the order of the archive; within a car the azimuth runs fastest."""

    folder: Path
    image_size: int
    channels = 3
    sequential = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (
            Factor("elevation", tuple(range(ELEVATIONS))),
            Factor("azimuth", tuple(range(0, 360, 360 // AZIMUTHS))),  # degrees
            Factor("object", tuple(sorted(self.cars))),
        )

    @property
    def _path(self) -> Path:
        return require(self.folder, "cars3d", FILES)[0]

    @cached_property
    def cars(self) -> tuple[int, ...]:
        """Numbers of the cars in the order of the archive, which is read to its end for them.

        Raises:
            UserError: The archive is missing or damaged, holds no cars, or holds a car twice.
        """
        cars = tuple(car for car, _ in self._iterate_files(()))
        if not cars or len(set(cars)) != len(cars):
            reason = f"{len(cars)} files car_NUMBER_mesh.mat for {len(set(cars))} cars instead of one file per car"
            raise UserError(invalid_file(self._path, reason))
        return cars

    def _iterate_files(self, selected: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """Yield the number of each car in the archive, and its file's content if the car is selected."""

        def car_of(name: str) -> int | None:
            match = _CAR.fullmatch(name.rpartition("/")[2])
            return int(match[1]) if match else None

        for name, content in tar_members(self._path, lambda name: car_of(name) in selected):
            if (car := car_of(name)) is not None:
                yield car, content

    @property
    def num_samples(self) -> int:
        return len(self.cars) * VIEWS

    @cached_property
    def fingerprint(self) -> str:
        return f"cars3d-{self.image_size}-{content_fingerprint([self._path])}"

    def validate(self) -> list[str]:
        next(self.read(0, 1))
        return warnings(self.folder, FILES)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        rank = {car: index for index, car in enumerate(sorted(self.cars))}
        selected = range(start // VIEWS, -(-stop // VIEWS))
        for index, (car, content) in enumerate(self._iterate_files(self.cars[selected.start : selected.stop])):
            if content is None:
                continue
            images = _read_images(f"car_{car}_mesh.mat in {self._path}", content)
            for view in range(max(start - index * VIEWS, 0), min(stop - index * VIEWS, VIEWS)):
                elevation, azimuth = divmod(view, AZIMUTHS)
                factors = {"elevation": elevation, "azimuth": azimuth, "object": rank[car]}
                image = resize_square(images[elevation, azimuth], self.image_size)
                yield Sample(f"{car:03d}-{elevation}-{azimuth:02d}", image, factors)
            if index == selected[-1]:
                return


def _read_images(label: str, content: bytes) -> NDArray[np.uint8]:
    """Return all images of a car, (elevations, azimuths, 128, 128, 3)."""
    with open_mat_array(label, BytesIO(content), "im") as array:
        if array.shape != _SHAPE or array.dtype != np.uint8:
            raise UserError(invalid_file(label, f"im is {array.dtype} {array.shape} instead of uint8 {_SHAPE}"))
        pixels = np.frombuffer(array.read(math.prod(_SHAPE)), np.uint8)
        array.finish()
    return pixels.reshape(_SHAPE[::-1]).transpose(0, 1, 4, 3, 2)
