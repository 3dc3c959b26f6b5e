"""Settings of the data: a section per dataset, chosen by name as in `data=svhn`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from vlae.config import Section, none_word

# Marks a setting of how and where a job runs, which does not change what it makes: two commands that
# differ in such settings only are the same dataset or the same run.
EXECUTION: JsonDict = {"execution": True}

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Ray workers run in folders of their own: a relative path would mean another place there.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: Path(path).expanduser().absolute())]
ImageSize = Annotated[int, Field(ge=8, le=1024, multiple_of=4)]


def whole_number(value: Any) -> Any:
    """Turn the command line's `3` into a number where only certain numbers are allowed."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Channels = Annotated[Literal[1, 3], BeforeValidator(whole_number)]


class DataSection(Section):
    """What every dataset shares: how it is split, cut into shards, and read."""

    validation_fraction: float = Field(
        0.05, ge=0, lt=0.5, description="share of the samples, by hash of the key, kept for validation"
    )
    test_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share kept for the test split, where the publisher gives none"
    )
    samples_per_task: int = Field(
        4096, ge=1, description="samples that one shard task reads, at most one tar per split"
    )
    encoding: Literal["npy", "png"] = Field(
        "npy", description="of the images in the tars: npy is raw and fast, png two to ten times smaller"
    )
    cache_folder: Annotated[AbsolutePath | None, BeforeValidator(none_word)] = Field(
        None,
        description="node-local copies of what is on S3 or in PNG; none: in the workspace",
        json_schema_extra=EXECUTION,
    )
    cache_bytes: int = Field(
        100 * 2**30,
        ge=2**20,
        description="most bytes of such copies; the oldest make room",
        json_schema_extra=EXECUTION,
    )


class FilesSection(DataSection):
    """A dataset that its publisher gives as files."""

    folder: AbsolutePath = Field(..., description="folder with the publisher's files", json_schema_extra=EXECUTION)


class DigitsConfig(DataSection):
    """Drawn digit scenes with known factors."""

    name: Literal["digits"] = "digits"
    num_images: int = Field(30_000, ge=10, le=10**9, description="scenes to draw")
    image_size: ImageSize = Field(32, description="height and width, pixels")
    channels: Channels = Field(3, description="3 for colour, 1 for grey")
    scene_seed: int = Field(0, ge=0, lt=2**63, description="seed of the scenes (part of the data)")


class IdxSection(FilesSection):
    """A dataset of 28x28 images in four IDX files."""

    image_size: Annotated[Literal[28, 32], BeforeValidator(whole_number)] = Field(
        28, description="28, or 32 with a black border"
    )
    download: bool = Field(
        True,
        description="fetch the files from the official address if the folder lacks them",
        json_schema_extra=EXECUTION,
    )


class FashionMnistConfig(IdxSection):
    """Fashion-MNIST: 70,000 grey images of clothes, 28x28, with the publisher's test split."""

    name: Literal["fashion_mnist"] = "fashion_mnist"
    folder: AbsolutePath = Field(
        DEBIAN_FASHION_MNIST, description="folder with the four IDX files, .gz or not", json_schema_extra=EXECUTION
    )


class MnistConfig(IdxSection):
    """MNIST: 70,000 grey images of handwritten digits, 28x28, with the publisher's test split."""

    name: Literal["mnist"] = "mnist"
    folder: AbsolutePath = Field(
        Path("datasets/mnist"),
        validate_default=True,
        description="folder with the four IDX files, .gz or not",
        json_schema_extra=EXECUTION,
    )


class ImagesConfig(DataSection):
    """A folder of PNG and JPEG pictures, at any depth, with an optional factors.csv."""

    name: Literal["images"] = "images"
    folder: AbsolutePath = Field(..., description="folder of pictures; its factors.csv has columns file, factor, ...")
    image_size: ImageSize = Field(64, description="pictures are centre-cropped to a square and resized to this, pixels")
    channels: Channels = Field(3, description="3 for colour, 1 for grey")


DataConfig = Annotated[DigitsConfig | FashionMnistConfig | MnistConfig | ImagesConfig, Field(discriminator="name")]
