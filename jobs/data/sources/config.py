"""Settings of each dataset: a section per name, chosen as in `data=svhn`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jobs.data.config import EXECUTION, AbsolutePath, BaseDataConfig, BaseFilesConfig

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

ImageSize = Annotated[int, Field(ge=8, le=1024, multiple_of=4)]


def whole_number(value: Any) -> Any:
    """Turn the command line's `3` into a number where only certain numbers are allowed."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Channels = Annotated[Literal[1, 3], BeforeValidator(whole_number)]


def files_in(name: str, files: str) -> Any:
    """The field of the folder where the files of a dataset are looked for."""
    return Field(
        Path("datasets") / name, validate_default=True, description=f"folder with {files}", json_schema_extra=EXECUTION
    )


class DigitsConfig(BaseDataConfig):
    """Drawn digit scenes with known factors."""

    name: Literal["digits"] = "digits"
    num_images: int = Field(30_000, ge=10, le=10**9, description="scenes to draw")
    image_size: ImageSize = Field(32, description="height and width, pixels")
    channels: Channels = Field(3, description="3 for color, 1 for gray")
    scene_seed: int = Field(0, ge=0, lt=2**63, description="seed of the scenes (part of the data)")


class BaseIdxConfig(BaseFilesConfig):
    """A dataset of 28x28 images in four IDX files."""

    image_size: Annotated[Literal[28, 32], BeforeValidator(whole_number)] = Field(
        28, description="28, or 32 with a black border"
    )
    download: bool = Field(
        True,
        description="fetch the files from the official address if the folder lacks them",
        json_schema_extra=EXECUTION,
    )


class FashionMnistConfig(BaseIdxConfig):
    """Fashion-MNIST: 70,000 gray images of clothes, 28x28, with the publisher's test split."""

    name: Literal["fashion_mnist"] = "fashion_mnist"
    root: AbsolutePath = Field(
        DEBIAN_FASHION_MNIST, description="folder with the four IDX files, .gz or not", json_schema_extra=EXECUTION
    )


class MnistConfig(BaseIdxConfig):
    """MNIST: 70,000 gray images of handwritten digits, 28x28, with the publisher's test split."""

    name: Literal["mnist"] = "mnist"
    root: AbsolutePath = files_in("mnist", "the four IDX files, .gz or not")


class SvhnConfig(BaseFilesConfig):
    """SVHN, cropped digits: 32x32 color photographs of house numbers, with the publisher's test split."""

    name: Literal["svhn"] = "svhn"
    root: AbsolutePath = files_in("svhn", "train_32x32.mat and test_32x32.mat")
    extra: bool = Field(False, description="add the 531,131 easier images of extra_32x32.mat to the training split")


class CelebaConfig(BaseFilesConfig):
    """CelebA: 202,599 aligned faces in color with 40 attributes and the publisher's three splits."""

    name: Literal["celeba"] = "celeba"
    root: AbsolutePath = files_in("celeba", "img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt")
    validation_fraction: float = Field(
        0.0, ge=0, lt=0.5, description="share of the training split, moved to the publisher's validation split"
    )
    crop: Annotated[Literal[148, 108], BeforeValidator(whole_number)] = Field(
        148, description="height and width cut out of the center of the 178x218 pixels"
    )
    image_size: ImageSize = Field(64, description="the crop is resized to this, pixels")


class SmallNorbConfig(BaseFilesConfig):
    """Small NORB: 48,600 gray images of toys with five factors and the publisher's test split."""

    name: Literal["smallnorb"] = "smallnorb"
    root: AbsolutePath = files_in("smallnorb", "the dat, cat and info files of training and testing, .gz or not")
    image_size: ImageSize = Field(64, description="images are resized to this, pixels; 96: as they are")


class Cars3dConfig(BaseFilesConfig):
    """Cars3D: 17,568 color images of 183 cars from 24 azimuths and 4 elevations."""

    name: Literal["cars3d"] = "cars3d"
    root: AbsolutePath = files_in("cars3d", "nips2015-analogy-data.tar.gz")
    image_size: ImageSize = Field(64, description="images are resized to this, pixels; 128: as they are")


class ImagesConfig(BaseDataConfig):
    """A folder of PNG and JPEG pictures, at any depth, with an optional factors.csv."""

    name: Literal["images"] = "images"
    root: AbsolutePath = Field(..., description="folder of pictures; its factors.csv has columns file, factor, ...")
    image_size: ImageSize = Field(64, description="pictures are center-cropped to a square and resized to this, pixels")
    channels: Channels = Field(3, description="3 for color, 1 for gray")


class DspritesConfig(BaseFilesConfig):
    """dSprites: 737,280 binary images of one shape, 64x64, with five factors."""

    name: Literal["dsprites"] = "dsprites"
    root: AbsolutePath = files_in("dsprites", "the published .npz or .hdf5")


class SpritesConfig(BaseDataConfig):
    """Sprites drawn here like those of dSprites: close, but not to be reported as dSprites."""

    name: Literal["sprites"] = "sprites"
    num_images: int = Field(
        0, ge=0, le=737_280, description="different ones of the 737,280 combinations, at random; 0: all"
    )


class Shapes3dConfig(BaseFilesConfig):
    """3DShapes: 480,000 color images of a room with one object, 64x64, with six factors."""

    name: Literal["shapes3d"] = "shapes3d"
    root: AbsolutePath = files_in("shapes3d", "3dshapes.h5")


class RoomsConfig(BaseDataConfig):
    """Rooms drawn here like those of 3DShapes, with the same factors."""

    name: Literal["rooms"] = "rooms"
    num_images: int = Field(
        30_000, ge=0, le=480_000, description="different ones of the 480,000 combinations, at random; 0: all"
    )
    image_size: ImageSize = Field(64, description="height and width, pixels")


class Mpi3dConfig(BaseFilesConfig):
    """MPI3D: 1,036,800 color images of a robot's arm, 64x64, with seven factors."""

    name: Literal["mpi3d"] = "mpi3d"
    root: AbsolutePath = files_in("mpi3d", "mpi3d_toy.npz, mpi3d_realistic.npz or mpi3d_real.npz")
    variant: Literal["toy", "realistic", "real"] = Field("real", description="which of the three")


class WebdatasetConfig(BaseDataConfig):
    """WebDataset tars that others wrote: PNG, JPEG, WebP or .npy images with .cls or .json labels."""

    name: Literal["webdataset"] = "webdataset"
    root: AbsolutePath = Field(
        ..., description="folder of tars (.tar, .tar.gz, .tgz), at any depth", json_schema_extra=EXECUTION
    )
    image_size: ImageSize = Field(64, description="images are center-cropped to a square and resized to this, pixels")
    channels: Channels = Field(3, description="3 for color, 1 for gray")


DataConfig = Annotated[
    DigitsConfig
    | FashionMnistConfig
    | MnistConfig
    | SvhnConfig
    | CelebaConfig
    | SmallNorbConfig
    | Cars3dConfig
    | DspritesConfig
    | SpritesConfig
    | Shapes3dConfig
    | RoomsConfig
    | Mpi3dConfig
    | ImagesConfig
    | WebdatasetConfig,
    Field(discriminator="name"),
]
