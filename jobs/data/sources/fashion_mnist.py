"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): its four IDX files, verified byte for byte."""

import gzip
import hashlib
import http.client
import struct
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.source import Factor, Sample, Split
from jobs.errors import UserError

OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# sha256 of the uncompressed files: packagers compress them anew, which changes the .gz only.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MOST_BYTES = 64 * 2**20  # the largest file has 47 MB; whatever is longer is something else
_TIMEOUT = 20.0  # seconds without an answer


@dataclass(frozen=True)
class FashionMnist:
    """Source of the 60,000 training and 10,000 test images; the factor is the class.

    Args:
        folder: holds the four files, each plain or as .gz.
        image_size: 28, or 32 with a black border of two pixels.
        files: name -> sha256 of the uncompressed content.
    """

    folder: Path
    image_size: int
    files: tuple[tuple[str, str], ...] = tuple(FILES.items())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 1

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (Factor("class", CLASSES),)

    @property
    def num_samples(self) -> int:
        return 70_000

    @property
    def fingerprint(self) -> str:
        return f"fashion_mnist-{self.image_size}-{self.files}"

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        # 60,000 and 10,000: a range may span the end of the one and the start of the other.
        parts = (("train", 0, 60_000), ("t10k", 60_000, 70_000))
        for part, first, last in parts:
            if start < last and stop > first:
                begin, end = max(start, first) - first, min(stop, last) - first
                images = read_idx(self._verified(f"{part}-images-idx3-ubyte"), begin, end)
                labels = read_idx(self._verified(f"{part}-labels-idx1-ubyte"), begin, end)
                border = (self.image_size - 28) // 2
                images = np.pad(images, ((0, 0), (border, border), (border, border)))[..., None]
                for number, image, label in zip(range(begin, end), images, labels, strict=True):
                    split: Split = "train" if part == "train" else "test"
                    yield Sample(f"{part}-{number:05d}", image, {"class": int(label)}, split)

    def _verified(self, name: str) -> bytes:
        path = find_file(self.folder, name)
        if path is None:
            raise UserError(f"{self.folder / name} is gone since the job began: put it back and run again")
        return read_verified(path, dict(self.files)[name])


def find_file(folder: Path, name: str) -> Path | None:
    """The file in `folder`, plain or .gz, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_verified(path: Path, sha256: str) -> bytes:
    """Uncompressed content of `path`.

    Raises:
        UserError: it is not the published content.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): put the official file in its place") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{path} is not the published file (sha256 of its content {digest[:12]}, expected {sha256[:12]}): "
            "put the official file in its place"
        )
    return content


def read_idx(content: bytes, start: int, stop: int) -> NDArray[np.uint8]:
    """Items start..stop-1 of an IDX file of bytes (LeCun's format: big-endian sizes, last index fastest).

    Raises:
        UserError: the header is not that of an IDX file of bytes, or the length does not fit it.
    """
    zero, kind, rank = struct.unpack_from(">HBB", content) if len(content) >= 4 else (1, 0, 0)
    if zero != 0 or kind != 8 or not 1 <= rank <= 4 or len(content) < 4 + 4 * rank:
        raise UserError("not an IDX file of bytes (magic number)")
    shape = struct.unpack_from(f">{rank}I", content, 4)
    if len(content) != 4 + 4 * rank + int(np.prod(shape)):
        raise UserError(f"IDX file of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)[start:stop]


def download(folder: Path) -> None:
    """Fetch what `folder` lacks from the official address, verified before it gets its name.

    Raises:
        UserError: no network, or the address sends something else.
    """
    for name, sha256 in FILES.items():
        if find_file(folder, name) is not None:
            continue
        url = f"{OFFICIAL}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:  # noqa: S310  (the address is ours)
                content = reply.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"Fashion-MNIST is not on this machine and {url} cannot be reached ({reason}): install Debian's "
                f"dataset-fashion-mnist, or set data.folder to a folder with {', '.join(FILES)} (plain or .gz)"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.gz.partial"
        partial.write_bytes(content)
        try:
            read_verified(partial.rename(folder / f"{name}.checking.gz"), sha256)
        except UserError:
            (folder / f"{name}.checking.gz").unlink()
            raise UserError(f"{url} sent something else than the published file: try again later") from None
        (folder / f"{name}.checking.gz").rename(folder / f"{name}.gz")
