"""Cars3D (Reed, Zhang, Zhang, Lee 2015): rendered car models, streamed out of the publisher's tar.gz."""

import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.data.formats.binary_arrays import FIX_HINT, opened
from jobs.data.formats.mat5 import array_of
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample
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
_MOST_BYTES = 64 * 2**20  # of one car's file, which is 5 MB uncompressed
_BUFFER = 2**18  # bytes that are uncompressed at once


@dataclass(frozen=True)
class Cars3d:
    """Source of the cars in color, 0 to 255, each from all azimuths and elevations.

    Samples are in the order of the archive, so that it is read once; in a car the azimuth runs fastest.

    Args:
        folder: holds nips2015-analogy-data.tar.gz.
        image_size: height and width, pixels; 128 leaves the images as they are.
    """

    folder: Path
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (
            Factor("elevation", tuple(range(ELEVATIONS))),
            Factor("azimuth", tuple(range(0, 360, 360 // AZIMUTHS))),  # degrees
            Factor("object", tuple(sorted(self.cars))),
        )

    @cached_property
    def cars(self) -> tuple[int, ...]:
        """Numbers of the cars, in the order of the archive, which is read to its end for them.

        Raises:
            UserError: it is missing or damaged, or holds no cars or one of them twice.
        """
        path = self._path
        cars = tuple(car for car, _ in _walk(path, range(0)))
        if not cars or len(set(cars)) != len(cars):
            raise UserError(f"{path} has {len(cars)} files of {len(set(cars))} cars, car_NUMBER_mesh.mat: {FIX_HINT}")
        return cars

    @property
    def num_samples(self) -> int:
        return len(self.cars) * VIEWS

    @property
    def fingerprint(self) -> str:
        return f"cars3d-{self.image_size}-{content_fingerprint([self._path])}"

    @property
    def sequential(self) -> bool:
        return True

    def check(self) -> list[str]:
        next(self.read(0, 1))
        return remarks(self.folder, FILES)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        rank = {car: index for index, car in enumerate(sorted(self.cars))}
        wanted = range(start // VIEWS, -(-stop // VIEWS))
        for place, (car, content) in enumerate(_walk(self._path, wanted)):
            if content is None:
                continue
            images = _read_images(f"car_{car}_mesh.mat in {self._path}", content)
            for view in range(max(start - place * VIEWS, 0), min(stop - place * VIEWS, VIEWS)):
                elevation, azimuth = divmod(view, AZIMUTHS)
                factors = {"elevation": elevation, "azimuth": azimuth, "object": rank[car]}
                yield Sample(f"{car:03d}-{elevation}-{azimuth:02d}", self._resize(images[elevation, azimuth]), factors)
            if place == wanted[-1]:
                return

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = np.ascontiguousarray(image)
        if self.image_size == image.shape[0]:
            return image
        size = self.image_size, self.image_size
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))

    @property
    def _path(self) -> Path:
        return require(self.folder, "cars3d", FILES)[0]


def _walk(path: Path, wanted: range) -> Iterator[tuple[int, bytes | None]]:
    """Number of each car in the archive, and its file's content where its place is wanted.

    Raises:
        UserError: the archive is damaged.
    """
    place = 0
    try:
        # Not tarfile's own mode for .gz streams: that takes a cut file for a whole one.
        with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER) as archive:
            for member in archive:
                match = _CAR.fullmatch(member.name.rpartition("/")[2])
                if not match or not member.isreg():
                    continue
                content = None
                if place in wanted:
                    if member.size > _MOST_BYTES:
                        raise UserError(f"{match[0]} in {path} has {member.size:,} bytes: {FIX_HINT}")
                    file = archive.extractfile(member)
                    content = file.read() if file else b""
                yield int(match[1]), content
                place += 1
            while stream.read(_BUFFER):
                pass  # at the end of the .gz its checksum is verified
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged ({error}): {FIX_HINT}") from error


def _read_images(label: str, content: bytes) -> NDArray[np.uint8]:
    """All images of a car, (elevations, azimuths, 128, 128, 3)."""
    with array_of(label, BytesIO(content), "im") as array:
        if array.shape != _SHAPE or array.dtype != np.uint8:
            raise UserError(f"{label} has im of {array.dtype} {array.shape}, not of uint8 {_SHAPE}: {FIX_HINT}")
        pixels = np.frombuffer(array.read(math.prod(_SHAPE)), np.uint8)
        array.finish()
    return pixels.reshape(_SHAPE[::-1]).transpose(0, 1, 4, 3, 2)
