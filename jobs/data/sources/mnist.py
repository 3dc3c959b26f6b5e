"""MNIST (LeCun, Cortes, Burges 1998) and Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): four IDX files each."""

import hashlib
import http.client
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.data.formats.binary_arrays import FIX_HINT, check_length, find_file, opened, read_items, read_shape
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks
from jobs.data.sources.base import Factor, Sample, Split
from jobs.errors import UserError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS: tuple[tuple[str, Split], ...] = (("train", "train"), ("t10k", "test"))
_MOST_BYTES = 64 * 2**20  # the largest file has 47 MB; whatever is longer is something else
_TIMEOUT = 20.0  # seconds without an answer


@dataclass(frozen=True)
class IdxDataset:
    """What sets one dataset of the format apart."""

    name: str  # as in data=NAME
    title: str
    factor: Factor
    address: str  # of the publisher, where the files lie as .gz
    hint: str  # how else to come by them
    files: tuple[tuple[str, str], ...]  # name without .gz, hash
    hashed: Literal["content", "gz"]  # sha256 of the content, verified; or md5 of the .gz, a remark when it differs

    def digest(self, path: Path) -> str:
        """Hash (hex) of a file, of the kind that `files` has."""
        if self.hashed == "content":
            with opened(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


FASHION_MNIST = IdxDataset(
    name="fashion_mnist",
    title="Fashion-MNIST",
    factor=Factor("class", CLASSES),
    address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    hint="install Debian's dataset-fashion-mnist, or ",
    # Of the content: packagers compress the files anew, which changes the .gz only.
    files=(
        ("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    hashed="content",
)
MNIST = IdxDataset(
    name="mnist",
    title="MNIST",
    factor=Factor("digit", tuple(str(digit) for digit in range(10))),
    address="https://storage.googleapis.com/cvdf-datasets/mnist",
    hint="",
    files=(
        ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    hashed="gz",
)


@dataclass(frozen=True)
class IdxImages:
    """Source of the training and test images of 28x28 pixels, gray, 0 to 255; one factor, the class.

    Args:
        dataset: which.
        folder: holds the four files, each plain or as .gz.
        image_size: 28, or 32 with a black border of two pixels.
    """

    dataset: IdxDataset
    folder: Path
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 1

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.dataset.factor,)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Images of each part, from the headers of its two files.

        Raises:
            UserError: a header is not of the format, or the two do not fit.
        """
        return tuple(self._count(part) for part, _ in PARTS)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def fingerprint(self) -> str:
        content = self.dataset.files if self.dataset.hashed == "content" else content_fingerprint(self._paths)
        return f"{self.dataset.name}-{self.image_size}-{content}"

    @property
    def sequential(self) -> bool:
        return any(path.suffix == ".gz" for path in self._paths)

    def check(self) -> list[str]:
        for name, _ in self.dataset.files:
            check_length(self._verified(name), read_header)
        self.counts  # noqa: B018  (the headers and factors are read)
        if self.dataset.hashed == "content":
            return []
        published = [PublishedFile(f"{name}.gz", None, md5, self.dataset.address) for name, md5 in self.dataset.files]
        return remarks(self.folder, [file for file in published if self.folder / file.name in self._paths])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        first = 0
        for (part, split), count in zip(PARTS, self.counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                yield from self._read_part(part, split, begin, end)
            first += count

    def _read_part(self, part: str, split: Split, start: int, stop: int) -> Iterator[Sample]:
        border = (self.image_size - 28) // 2
        number = start
        label_file = self._verified(f"{part}-labels-idx1-ubyte")
        batches = zip(
            read_items(self._verified(f"{part}-images-idx3-ubyte"), read_header, start, stop),
            read_items(label_file, read_header, start, stop),
            strict=True,
        )
        for images, labels in batches:
            if labels.max() >= len(self.dataset.factor.values):
                raise UserError(f"{label_file} has the label {labels.max()}, not 0 to 9: {FIX_HINT}")
            framed = np.pad(images, ((0, 0), (border, border), (border, border)))[..., None]
            for image, label in zip(framed, labels, strict=True):
                yield Sample(f"{part}-{number:05d}", image, {self.dataset.factor.name: int(label)}, split)
                number += 1

    def _count(self, part: str) -> int:
        images, labels = (self._path(f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        shapes = [read_shape(path, read_header) for path in (images, labels)]
        if shapes[0][1:] != (28, 28):
            raise UserError(f"{images} is an IDX file of shape {shapes[0]}, not of images 28x28: {FIX_HINT}")
        if shapes[1] != shapes[0][:1]:
            raise UserError(f"{labels} has shape {shapes[1]}, and there are {shapes[0][0]} images: {FIX_HINT}")
        return shapes[0][0]

    def _verified(self, name: str) -> Path:
        """The file, read to its end to see that it is the published one, where other content is an error."""
        path, expected = self._path(name), dict(self.dataset.files)[name]
        if self.dataset.hashed == "content" and (digest := self.dataset.digest(path)) != expected:
            raise UserError(
                f"{path} is not the published file (sha256 of its content {digest[:12]}, expected {expected[:12]}): "
                f"{FIX_HINT}"
            )
        return path

    @property
    def _paths(self) -> list[Path]:
        return [self._path(name) for name, _ in self.dataset.files]

    def _path(self, name: str) -> Path:
        path = find_file(self.folder, name)
        if path is None:
            raise UserError(f"{self.folder / name} is gone since the job began: put it back and run again")
        return path


def read_header(path: Path, file: BufferedIOBase) -> tuple[int, ...]:
    """The shape in the header of an IDX file of bytes: big-endian sizes, last index fastest.

    Raises:
        UserError: it is none.
    """
    magic = file.read(4)
    rank = magic[3] if len(magic) == 4 else 0
    sizes = file.read(4 * rank)
    if magic[:3] != b"\0\0\x08" or not 1 <= rank <= 4 or len(sizes) != 4 * rank:
        raise UserError(f"{path} is not an IDX file of bytes (magic number): {FIX_HINT}")
    return struct.unpack(f">{rank}I", sizes)


def download(dataset: IdxDataset, folder: Path) -> None:
    """Fetch what `folder` lacks from the official address, verified before it gets its name.

    Raises:
        UserError: no network, or the address sends something else.
    """
    for name, expected in dataset.files:
        if find_file(folder, name) is not None:
            continue
        url = f"{dataset.address}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:  # noqa: S310  (the address is ours)
                content = reply.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{dataset.title} is not on this machine and {url} cannot be reached ({reason}): {dataset.hint}"
                f"set data.root to a folder with {', '.join(name for name, _ in dataset.files)} (plain or .gz)"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.partial.gz"
        partial.write_bytes(content)
        try:
            published = dataset.digest(partial) == expected
        except UserError:
            published = False
        if not published:
            partial.unlink()
            raise UserError(f"{url} sent something else than the published file: try again later")
        partial.rename(folder / f"{name}.gz")
