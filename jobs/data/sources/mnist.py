"""MNIST and Fashion-MNIST: four IDX files each, downloaded from the official address if necessary.

References:
    LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998.
    Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017,
    arXiv:1708.07747.
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field

from jobs.config import EXECUTION, AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.idx import ByteArray, read_idx_header
from jobs.data.formats.published import (
    PublishedFile,
    file_md5,
    find_file,
    invalid_file,
    open_plain_or_gzip,
    warnings,
)
from jobs.data.sources.base import (
    BaseFilesConfig,
    Factor,
    Sample,
    Source,
    Split,
    parse_integer,
    ranges_by_file,
    root_field,
)
from jobs.errors import MissingSourceError, UnavailableError, UserError
from jobs.files import replace_file

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SUBSETS: tuple[tuple[str, Split], ...] = (("train", "train"), ("t10k", "test"))
_MAX_BYTES = 32 * 2**20  # of a download; the largest file has 26 MB


@dataclass(frozen=True)
class IdxDataset:
    """Properties that differ between the two datasets; `files` has names without .gz, each with its hash.

    `hashed` is "content" (sha256 of the uncompressed content, where another hash is an error) or "gz" (md5 of the .gz,
    where another hash is a warning).
    """

    name: str
    title: str
    factor: Factor
    address: str
    hint: str
    files: tuple[tuple[str, str], ...]
    hashed: Literal["content", "gz"]

    def digest(self, path: Path) -> str:
        """Return the hash (hex) of a file, of the kind that `files` has."""
        if self.hashed == "gz":
            return file_md5(path)
        with open_plain_or_gzip(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def is_published(self, content: bytes, expected: str) -> bool:
        """Return whether the bytes of a .gz have this hash, of the kind that `files` has."""
        if self.hashed == "gz":
            return hashlib.md5(content, usedforsecurity=False).hexdigest() == expected
        try:
            with gzip.open(io.BytesIO(content)) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == expected
        except (OSError, EOFError, zlib.error):
            return False

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that a folder lacks."""
        return [name for name, _ in self.files if find_file(folder, name) is None]


FASHION_MNIST = IdxDataset(
    name="fashion_mnist",
    title="Fashion-MNIST",
    factor=Factor("class", CLASSES),
    address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    hint="Install Debian's package dataset-fashion-mnist. Or: ",
    # Hashes of the content, because packagers compress the files anew, which changes the .gz only.
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
    factor=Factor("digit", tuple("0123456789")),
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


class BaseIdxConfig(BaseFilesConfig):
    """A dataset of 28x28 images in four IDX files."""

    dataset: ClassVar[IdxDataset]
    image_size: Annotated[Literal[28, 32], BeforeValidator(parse_integer)] = Field(
        28, description="height and width in pixels; 32 adds a black border"
    )
    download: bool = Field(
        True, description="download missing files from the official address", json_schema_extra=EXECUTION
    )

    def locate(self, downloads: Path, *, fetch: bool) -> Self:
        """Return these settings with a `root` that holds the four files: the folder itself, or the downloads."""
        missing = self.dataset.missing(self.root)
        if not missing:
            return self
        folder = downloads / self.dataset.name
        # A root that the user set is never replaced by a download, because it may be mistyped.
        user_set = self.root != type(self).model_fields["root"].default.absolute()
        if user_set or (self.dataset.missing(folder) and not (self.download and fetch)):
            raise MissingSourceError(
                f"data.root={self.root}: not found: {', '.join(missing)}. Put these files there, plain or .gz."
            )
        download_missing(self.dataset, folder)
        return self.model_copy(update={"root": folder})

    def open(self) -> "IdxImages":
        return IdxImages(self.dataset, self.root, self.image_size)


class FashionMnistConfig(BaseIdxConfig):
    """Fashion-MNIST: 70,000 gray images of clothes, 28x28, with the publisher's test split."""

    dataset = FASHION_MNIST
    name: Literal["fashion_mnist"] = "fashion_mnist"
    root: AbsolutePath = Field(
        DEBIAN_FASHION_MNIST, description="folder with the four IDX files, .gz or not", json_schema_extra=EXECUTION
    )


class MnistConfig(BaseIdxConfig):
    """MNIST: 70,000 gray images of handwritten digits, 28x28, with the publisher's test split."""

    dataset = MNIST
    name: Literal["mnist"] = "mnist"
    root: AbsolutePath = root_field("mnist", "the four IDX files, .gz or not")


@dataclass(frozen=True)
class IdxImages(Source):
    """Source of the 28x28 gray images, 0 to 255, by class; at 32 pixels they have a black border of two pixels."""

    dataset: IdxDataset
    folder: Path
    image_size: int
    channels = 1

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.dataset.factor,)

    @property
    def _paths(self) -> dict[str, Path]:
        """The four files by their names without .gz."""
        for name in self.dataset.missing(self.folder):
            raise MissingSourceError(f"{self.folder / name}: not found, although it existed before. Put the file back.")
        paths = {name: find_file(self.folder, name) for name, _ in self.dataset.files}
        return {name: path for name, path in paths.items() if path}

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of training and test images, from the headers; files that do not fit together raise a UserError."""
        counts, paths = [], self._paths
        for subset, _ in SUBSETS:
            images, labels = (paths[f"{subset}-{kind}-ubyte"] for kind in ("images-idx3", "labels-idx1"))
            shape, label_shape = (ByteArray(path, read_idx_header).shape for path in (images, labels))
            if shape[1:] != (28, 28):
                raise UserError(invalid_file(images, f"shape {shape} instead of (N, 28, 28)"))
            if label_shape != shape[:1]:
                raise UserError(invalid_file(labels, f"shape {label_shape}, but there are {shape[0]} images"))
            counts.append(shape[0])
        return tuple(counts)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @cached_property
    def fingerprint(self) -> str:
        by_content = self.dataset.hashed == "content"
        content = self.dataset.files if by_content else content_fingerprint([*self._paths.values()])
        return f"{self.dataset.name}-{self.image_size}-{content}"

    @property
    def sequential(self) -> bool:
        return any(path.suffix == ".gz" for path in self._paths.values())

    def validate(self) -> list[str]:
        for name, _ in self.dataset.files:
            self._verified(name).validate_length()
        self.counts  # noqa: B018  (reads the headers)
        if self.dataset.hashed == "content":
            return []
        published = [PublishedFile(f"{name}.gz", None, md5, self.dataset.address) for name, md5 in self.dataset.files]
        existing = {path.name for path in self._paths.values()}
        return warnings(self.folder, [file for file in published if file.name in existing])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        factor, border = self.dataset.factor, (self.image_size - 28) // 2
        for file, begin, end in ranges_by_file(self.counts, start, stop):
            subset, split = SUBSETS[file]
            label_file = self._verified(f"{subset}-labels-idx1-ubyte")
            image_blocks = self._verified(f"{subset}-images-idx3-ubyte").blocks(begin, end)
            for images, labels in zip(image_blocks, label_file.blocks(begin, end), strict=True):
                if labels.max() >= len(factor.values):
                    raise UserError(invalid_file(label_file.path, f"label {labels.max()} instead of 0 to 9"))
                padded = np.pad(images, ((0, 0), (border, border), (border, border)))[..., None]
                for index, (image, label) in enumerate(zip(padded, labels.tolist(), strict=True), start=begin):
                    yield Sample(f"{subset}-{index:05d}", image, {factor.name: label}, split)
                begin += len(images)  # noqa: PLW2901

    def _verified(self, name: str) -> ByteArray:
        """Return a file after a check of its content, where other content than published is an error."""
        path, expected = self._paths[name], dict(self.dataset.files)[name]
        if self.dataset.hashed == "content" and (digest := self.dataset.digest(path)) != expected:
            raise UserError(invalid_file(path, f"other content (sha256 {digest[:12]} instead of {expected[:12]})"))
        return ByteArray(path, read_idx_header)


def download_missing(dataset: IdxDataset, folder: Path) -> None:
    """Download the missing files from the official address, and verify each before it gets its name.

    Raises:
        UserError: The address cannot be reached.
        UnavailableError: The address serves something else.
    """
    from jobs.data.download import download  # noqa: PLC0415  (because requests takes time to import)

    hashes = dict(dataset.files)
    for name in dataset.missing(folder):
        url = f"{dataset.address}/{name}.gz"
        try:
            content = download(url, _MAX_BYTES)
        except UnavailableError as error:
            files = f"Set data.root to a folder with {', '.join(hashes)} (plain or .gz)."
            raise UserError(f"{error} {dataset.hint}{files}") from error
        if not dataset.is_published(content, hashes[name]):
            raise UnavailableError(f"{url}: not the published file. Put the files into data.root.")
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / f"{name}.gz") as file:
            file.write(content)
