"""From a data section to its source."""

from pathlib import Path

from jobs.data.formats.binary_arrays import find_file
from jobs.data.sources.base import Source
from jobs.data.sources.cars3d import Cars3d
from jobs.data.sources.celeba import CelebA
from jobs.data.sources.config import (
    BaseIdxConfig,
    Cars3dConfig,
    CelebaConfig,
    DataConfig,
    DigitsConfig,
    DspritesConfig,
    FashionMnistConfig,
    ImagesConfig,
    MnistConfig,
    Mpi3dConfig,
    RoomsConfig,
    Shapes3dConfig,
    SmallNorbConfig,
    SpritesConfig,
    SvhnConfig,
    WebdatasetConfig,
)
from jobs.data.sources.digits import DigitScenes
from jobs.data.sources.dsprites import DSprites
from jobs.data.sources.image_folder import ImageFolder
from jobs.data.sources.mnist import FASHION_MNIST, MNIST, IdxDataset, IdxImages, download
from jobs.data.sources.mpi3d import Mpi3d
from jobs.data.sources.rooms import Rooms
from jobs.data.sources.shapes3d import Shapes3D
from jobs.data.sources.smallnorb import SmallNorb
from jobs.data.sources.sprites import Sprites
from jobs.data.sources.svhn import Svhn
from jobs.data.sources.webdataset_tars import WebDatasetTars
from jobs.errors import UserError


def open_source(config: DataConfig, downloads: Path, *, fetch: bool) -> Source:
    """The source that `config` names, its files found.

    Args:
        config: a data section.
        downloads: folder for what has to be fetched from a publisher.
        fetch: whether it may be fetched now.

    Raises:
        UserError: files are missing or cannot be fetched; the message says which go where.
    """
    match config:
        case DigitsConfig():
            return DigitScenes(config.num_images, config.image_size, config.channels, config.scene_seed)
        case ImagesConfig():
            return ImageFolder(config.root, config.image_size, config.channels)
        case FashionMnistConfig():
            return _open_idx(FASHION_MNIST, config, downloads, fetch=fetch)
        case MnistConfig():
            return _open_idx(MNIST, config, downloads, fetch=fetch)
        case SvhnConfig():
            return Svhn(config.root, config.extra)
        case CelebaConfig():
            return CelebA(config.root, config.crop, config.image_size)
        case SmallNorbConfig():
            return SmallNorb(config.root, config.image_size)
        case Cars3dConfig():
            return Cars3d(config.root, config.image_size)
        case DspritesConfig():
            return DSprites(config.root)
        case SpritesConfig():
            return Sprites(config.num_images)
        case Shapes3dConfig():
            return Shapes3D(config.root)
        case RoomsConfig():
            return Rooms(config.num_images, config.image_size)
        case Mpi3dConfig():
            return Mpi3d(config.root, config.variant)
        case WebdatasetConfig():
            return WebDatasetTars(config.root, config.image_size, config.channels)


def _open_idx(dataset: IdxDataset, config: BaseIdxConfig, downloads: Path, *, fetch: bool) -> IdxImages:
    names = [name for name, _ in dataset.files]

    def lacking(folder: Path) -> list[str]:
        return [name for name in names if not find_file(folder, name)]

    folder, fetched = config.root, downloads / dataset.name
    if lacking(folder):
        # Someone who names a folder wants what is in it, and may have mistyped it.
        chosen = folder != type(config).model_fields["root"].default.absolute()
        if chosen or (lacking(fetched) and not (config.download and fetch)):
            raise UserError(f"data.root={folder} lacks {', '.join(lacking(folder))} (plain or .gz): put them there")
        folder = fetched
        download(dataset, folder)
    return IdxImages(dataset, folder, config.image_size)
