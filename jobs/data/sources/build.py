"""From a data section to its source."""

from pathlib import Path

from jobs.data.config import DEBIAN_FASHION_MNIST, DigitsConfig, FashionMnistConfig, ImagesConfig
from jobs.data.source import Source
from jobs.data.sources.digits import DigitScenes
from jobs.data.sources.fashion_mnist import FILES, FashionMnist, download, find_file
from jobs.data.sources.image_folder import ImageFolder
from jobs.errors import UserError


def open_source(config: DigitsConfig | FashionMnistConfig | ImagesConfig, downloads: Path, *, fetch: bool) -> Source:
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
            return ImageFolder(config.folder, config.image_size, config.channels)
        case FashionMnistConfig():
            return FashionMnist(_fashion_mnist_folder(config, downloads, fetch), config.image_size)


def _fashion_mnist_folder(config: FashionMnistConfig, downloads: Path, fetch: bool) -> Path:
    def complete(folder: Path) -> bool:
        return all(find_file(folder, name) for name in FILES)

    if complete(config.folder):
        return config.folder
    fetched = downloads / "fashion_mnist"
    # Someone who names a folder wants what is in it, and may have mistyped it.
    chosen = config.folder != DEBIAN_FASHION_MNIST
    if complete(fetched) and not chosen:
        return fetched
    if chosen or not config.download or not fetch:
        missing = ", ".join(name for name in FILES if not find_file(config.folder, name))
        raise UserError(f"data.folder={config.folder} lacks {missing} (plain or .gz): put them there")
    download(fetched)
    return fetched
