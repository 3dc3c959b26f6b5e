"""From a data section to its source."""

from pathlib import Path

from jobs.data.config import DigitsConfig, FashionMnistConfig, IdxSection, ImagesConfig, MnistConfig
from jobs.data.source import Source
from jobs.data.sources.digits import DigitScenes
from jobs.data.sources.gz_files import find_file
from jobs.data.sources.idx import FASHION_MNIST, MNIST, IdxDataset, IdxImages, download
from jobs.data.sources.image_folder import ImageFolder
from jobs.errors import UserError


def open_source(
    config: DigitsConfig | FashionMnistConfig | MnistConfig | ImagesConfig, downloads: Path, *, fetch: bool
) -> Source:
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
            return _open_idx(FASHION_MNIST, config, downloads, fetch=fetch)
        case MnistConfig():
            return _open_idx(MNIST, config, downloads, fetch=fetch)


def _open_idx(dataset: IdxDataset, config: IdxSection, downloads: Path, *, fetch: bool) -> IdxImages:
    names = [name for name, _ in dataset.files]

    def lacking(folder: Path) -> list[str]:
        return [name for name in names if not find_file(folder, name)]

    folder, fetched = config.folder, downloads / dataset.name
    if lacking(folder):
        # Someone who names a folder wants what is in it, and may have mistyped it.
        chosen = folder != type(config).model_fields["folder"].default.absolute()
        if chosen or (lacking(fetched) and not (config.download and fetch)):
            raise UserError(f"data.folder={folder} lacks {', '.join(lacking(folder))} (plain or .gz): put them there")
        folder = fetched
        download(dataset, folder)
    return IdxImages(dataset, folder, config.image_size)
