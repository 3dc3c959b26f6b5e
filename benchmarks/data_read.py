"""Compare CPU and wall time per image of readers of batches of 128 uint8 images.

    python -m benchmarks.data_read [images=50000] [rounds=5] [seconds=1] [threads=1] [folder=DIR] [keep=true]

All readers read the same images, from files in the page cache, in steady state: verified, mapped, warm.

- "ours", index_select and memmap take read the same samples in the same order, a shuffle of all images. "ours" also
  computes the order, step by step; "ours, order given" gets the sample ids beforehand, like the other two.
- memcpy copies consecutive batches to one buffer.
- litdata shuffles the chunks and the samples within each, webdataset in a buffer or not at all, the folder of PNG all
  images.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_write import litdata as write_litdata
from benchmarks.harness import (
    Contestant,
    Settings,
    Times,
    endless,
    machine,
    measure,
    ratios,
    read_settings,
    table,
    verdict,
    workplace,
)
from benchmarks.photos import draw_photos, write_dataset
from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import GlobalShuffle
from jobs.data.shard_reader import DataAccess

Images = NDArray[np.uint8]
Batches = Iterator[Any]  # endless; arrays or tensors, images along the first dimension

_BATCH = 128
_OURS, _OURS_GIVEN, _GATHER, _COPY = "ours", "ours, order given", "index_select in RAM", "memcpy"
_WORKERS = "folder of PNG, 2 workers"
_STOCK = ("webdataset npy", "webdataset npy, shuffle(1000)", "webdataset npy, images only")


def write_formats(folder: Path, settings: Settings) -> Images:
    """Write the images in every format, and return those of the train split."""
    photos = draw_photos(folder / "photos.npy", settings.images, settings.seed)
    write_dataset(photos, folder / "npy", "npy")
    write_dataset(photos, folder / "png", "png")
    photos = photos[:-1]  # the last one is the test split
    write_litdata(photos, folder / "litdata")
    (folder / "files").mkdir()
    for path in folder.glob("png/train-*.tar"):
        content, index = memoryview(path.read_bytes()), np.load(path.with_suffix(".index.npy"))
        for row, (start, length) in enumerate(index[:, :2].tolist()):
            (folder / "files" / f"{path.stem}-{row}.png").write_bytes(content[start : start + length])
    size = sum(path.stat().st_size for path in (folder / "files").iterdir()) / len(photos)
    print(f"{len(photos)} images of {photos[0].nbytes} bytes, as PNG {size:.0f} bytes")
    return photos


def read_ours(loader: BatchLoader) -> Batches:
    """Read one step after the other in the calling thread."""
    return (loader.images(step) for step in count())


def read_ids(data: ShardedDataset, steps: Sequence[NDArray[np.int64]]) -> Batches:
    """Read samples whose ids are known."""
    return (data.images(sample_ids) for sample_ids in cycle(steps))


def read_ahead(loader: BatchLoader) -> Batches:
    """Read as the training does: a thread prepares the next batches."""
    return loader.batches(0, sys.maxsize)


def gather(images: Tensor, steps: Sequence[Tensor]) -> Batches:
    """Gather rows of a tensor in memory, the least that a TensorDataset costs."""
    return (images.index_select(0, sample_ids) for sample_ids in cycle(steps))


def memcpy(images: Images) -> Batches:
    """Copy batches, the least that any reader costs."""
    target = np.empty_like(images[:_BATCH])
    for start in cycle(range(0, len(images) - _BATCH + 1, _BATCH)):
        np.copyto(target, images[start : start + _BATCH])
        yield target


def take(path: Path, steps: Sequence[NDArray[np.int64]]) -> Batches:
    """Gather rows of one mapped file of raw pixels by numpy."""
    images = np.load(path, mmap_mode="r")
    images = images.reshape(len(images), -1)
    return (np.take(images, sample_ids, axis=0) for sample_ids in cycle(steps))


def read_tars(folder: Path, encoding: str, *, shuffle: int = 0, images_only: bool = False) -> Batches:
    """Read by stock webdataset.

    Args:
        folder: Folder of the formats.
        encoding: Encoding of the tars.
        shuffle: Size of the shuffle buffer; 0: no shuffle.
        images_only: Whether to skip the labels while reading the tars, which is the fastest.
    """
    tars = sorted(map(str, (folder / encoding).glob("train-*.tar")))
    select = (lambda name: name.endswith(encoding)) if images_only else None
    while True:
        samples = wds.WebDataset(tars, shardshuffle=len(tars) if shuffle else False, select_files=select)
        samples = samples.shuffle(shuffle) if shuffle else samples
        for (images,) in samples.decode("rgb8").to_tuple(encoding).batched(_BATCH):
            yield images


def read_litdata(folder: Path) -> Batches:
    """Read by stock litdata in this process."""
    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=_BATCH, num_workers=0)
    while True:
        for batch in loader:
            yield batch["image"]


class PngFiles(Dataset[Tensor]):
    """A plain dataset of image files, as in tutorials."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as image:
            return torch.from_numpy(np.array(image))


def read_files(folder: Path, workers: int) -> Batches:
    """Read by the stock DataLoader."""
    dataset = PngFiles(folder / "files")
    loader = DataLoader(dataset, _BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


def check_equal(images: Images, loaders: Sequence[BatchLoader], everything: Tensor, order: GlobalShuffle) -> None:
    """Check that ours, index_select and the source are bit-identical within and at the ends of an epoch."""
    last = len(images) // _BATCH
    for step in (0, 1, last // 2, last - 1, last, last + 1):
        sample_ids = order.batch(step)
        expected = images[sample_ids]
        gathered = everything.index_select(0, torch.from_numpy(sample_ids)).numpy().reshape(expected.shape)
        readings = [next(loader.batches(step, step + 1)) for loader in loaders]
        readings += [loader.images(step) for loader in loaders]
        for reading in (gathered, *(reading.permute(0, 2, 3, 1).numpy() for reading in readings)):
            if not np.array_equal(reading, expected):
                raise AssertionError(f"step {step} differs from what was written")
    print("ours, index_select and the source agree to the bit")


def readers(folder: Path, photos: Images, seed: int) -> dict[str, Callable[[], Batches]]:
    """Return all readers, the lower bounds first."""
    data = ShardedDataset(DataAccess(str(folder / "npy"), folder / "cache", 2**40), "train")
    order = GlobalShuffle(data.shard_sizes, batch_size=_BATCH, seed=seed)
    mapped = BatchLoader(data, order, num_microbatches=1)
    preloaded = BatchLoader(data, order, num_microbatches=1, preload=torch.device("cpu"))
    everything = torch.from_numpy(np.array(photos)).reshape(len(photos), -1)
    check_equal(photos, (mapped, preloaded), everything, order)
    steps = [order.batch(step) for step in range(len(photos) // _BATCH)]
    return {
        _COPY: partial(memcpy, everything.numpy()),
        _GATHER: partial(gather, everything, [torch.from_numpy(sample_ids) for sample_ids in steps]),
        "memmap take": partial(take, folder / "photos.npy", steps),
        _OURS: partial(read_ours, mapped),
        _OURS_GIVEN: partial(read_ids, data, steps),
        "ours, read ahead": partial(read_ahead, mapped),
        "ours, preloaded in RAM": partial(read_ours, preloaded),
        "litdata ndarray": partial(read_litdata, folder),
        _STOCK[0]: partial(read_tars, folder, "npy"),
        _STOCK[1]: partial(read_tars, folder, "npy", shuffle=1000),
        _STOCK[2]: partial(read_tars, folder, "npy", images_only=True),
        "webdataset PNG": partial(read_tars, folder, "png"),
        "folder of PNG": partial(read_files, folder, 0),
        _WORKERS: partial(read_files, folder, 2),
    }


def targets(times: dict[str, Times]) -> str:
    """Return the project's targets for its reader, with the measured ratios."""
    stock = min((times[name] for name in _STOCK), key=lambda taken: sum(taken.cpu))
    lines = []
    for name in (_OURS, _OURS_GIVEN):
        taken = times[name]
        lines += [
            verdict(f"{name}: fraction of the speed of index_select in RAM", ratios(times[_GATHER], taken), 0.6),
            verdict(f"{name}: fraction of the speed of memcpy", ratios(times[_COPY], taken), 0.34),
            verdict(f"{name}: times faster than the fastest webdataset npy", ratios(stock, taken), 20),
        ]
    return "\n".join(lines)


def run(settings: Settings, folder: Path) -> None:
    """Write all formats, check them, measure, and print."""
    print(machine(folder))
    photos = write_formats(folder, settings)
    contestants: list[Contestant] = []
    for name, read in readers(folder, photos, settings.seed).items():
        # Longer rounds, because at the end of a round the workers hold up to four batches for the next.
        seconds = settings.seconds * (4 if name == _WORKERS else 1)
        contestants.append(endless(name, read(), len(photos), seconds))
    times = measure(contestants, settings.rounds)
    print(table(times, ours=_OURS, lower_bound=_COPY))
    print(targets(times))


if __name__ == "__main__":
    options = read_settings(sys.argv[1:])
    with workplace(options) as work_folder:
        run(options, work_folder)
