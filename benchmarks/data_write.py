"""Compare CPU and wall time per image of writers of a dataset.

    python -m benchmarks.data_write [images=50000] [rounds=5] [threads=1] [folder=DIR] [keep=true]

All writers get the same images from memory and write them with their labels, 4,096 per file, from one process. Ours
also hashes every byte and writes an index. `write_tasks` is the code of a shard task, which also forces the files to
the disk (fsync), unlike all others; its wall time shows the cost.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import webdataset as wds
from litdata.streaming.cache import Cache
from numpy.typing import NDArray

from benchmarks.harness import (
    Contestant,
    Settings,
    Times,
    machine,
    measure,
    ratios,
    read_settings,
    spread,
    table,
    verdict,
    workplace,
)
from benchmarks.photos import (
    IMAGES_PER_SHARD,
    SHAPE,
    Encoding,
    PhotoSource,
    data_config,
    draw_photos,
    key_of,
    label_of,
    write_dataset,
)
from jobs.data.shard_writer import ShardWriter, write_tasks
from jobs.shard import plan_tasks

Images = NDArray[np.uint8]
Write = Callable[[Images, Path], None]

_PNG_IMAGES = 5000  # of a round: PNG takes a millisecond each
_WHOLE, _BARE, _FLOOR = "ours npy, write_tasks", "ours npy, ShardWriter", "np.tofile"
_STOCK, _PLAIN_STOCK = "webdataset npy, mtime=0", "webdataset npy"


def ours_whole(images: Images, folder: Path) -> None:
    """Write tars, hashes, indexes and task files, published with fsync."""
    source, config = PhotoSource(images), data_config("npy")
    for _ in write_tasks(source, str(folder), plan_tasks(source, config), config):
        pass


def ours_bare(images: Images, folder: Path, encoding: Encoding) -> None:
    """Write tars, hashes and indexes to the page cache, as the others do."""
    source = PhotoSource(images)
    names = [factor.name for factor in source.factors]
    for task, start in enumerate(range(0, len(images), IMAGES_PER_SHARD)):
        writer = ShardWriter(folder, f"train-{task:05d}", "train", SHAPE, names, encoding)
        for sample in source.read(start, min(start + IMAGES_PER_SHARD, len(images))):
            writer.write(sample)
        writer.close()


def webdataset(images: Images, folder: Path, extension: str, **settings: object) -> None:
    """Write as the documentation of webdataset does."""
    pattern = str(folder / "%05d.tar")
    with wds.ShardWriter(pattern, maxcount=IMAGES_PER_SHARD, verbose=0, **settings) as writer:
        for index, image in enumerate(images):
            writer.write({"__key__": key_of(index), extension: image, "json": label_of(index)})


def litdata(images: Images, folder: Path) -> None:
    """Write as a worker of litdata's optimize() does."""
    cache = Cache(input_dir=str(folder), chunk_size=IMAGES_PER_SHARD)
    for index, image in enumerate(images):
        cache._add_item(index, {"image": image, **label_of(index)})
    cache.done()
    cache.merge()


def tofile(images: Images, folder: Path) -> None:
    """Write the raw pixels, the least that any writer costs."""
    for start in range(0, len(images), IMAGES_PER_SHARD):
        images[start : start + IMAGES_PER_SHARD].tofile(folder / f"{start}.raw")


WRITERS: dict[str, Write] = {
    _FLOOR: tofile,
    _BARE: partial(ours_bare, encoding="npy"),
    _WHOLE: ours_whole,
    _STOCK: partial(webdataset, extension="npy", mtime=0),
    _PLAIN_STOCK: partial(webdataset, extension="npy"),
    "litdata ndarray": litdata,
}
PNG_WRITERS: dict[str, Write] = {
    "ours PNG, ShardWriter": partial(ours_bare, encoding="png"),
    "webdataset PNG, mtime=0": partial(webdataset, extension="png", mtime=0),
}


def contestant(name: str, write: Write, images: Images, folder: Path) -> Contestant:
    """Return a contestant whose rounds write into an empty folder, with no other writes pending.

    The memory that the page cache will need is allocated and freed before each round, because a virtual machine returns
    free memory to its host, and getting it back takes longer than filling it.
    """

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.sync()
        np.ones(images.nbytes * 5 // 4, np.uint8)

    def run() -> int:
        write(images, folder)
        return len(images)

    return Contestant(name, run, prepare)


def check_with_stock_webdataset(images: Images, folder: Path) -> None:
    """Check that stock webdataset reads every sample of our tars as it was written."""
    counts: dict[Encoding, int] = {"npy": len(images), "png": min(len(images), _PNG_IMAGES)}
    for encoding, count in counts.items():
        write_dataset(images[:count], folder / encoding, encoding)
        tars = sorted(map(str, (folder / encoding).glob("*.tar")))
        is_read = np.zeros(count, bool)
        for sample in wds.WebDataset(tars, shardshuffle=False).decode("rgb8"):
            index = int(sample["__key__"])
            if not np.array_equal(sample[encoding], images[index]) or sample["json"] != label_of(index):
                raise AssertionError(f"webdataset reads another sample {sample['__key__']} from {encoding} tars")
            is_read[index] = True
        if not is_read.all():
            raise AssertionError(f"webdataset misses {np.sum(~is_read)} samples of our {encoding} tars")
        print(f"stock webdataset reads all {count} samples of our {encoding} tars, bit-identical")


def targets(times: dict[str, Times]) -> str:
    """Return the project's targets for its writer, with the measured ratios."""
    lines = [
        verdict(f"{ours}, times faster than {_STOCK}, CPU per core", ratios(times[_STOCK], times[ours]), 5)
        for ours in (_BARE, _WHOLE)
    ]
    lines.append(f"(than {_PLAIN_STOCK} with its default mtime: {spread(ratios(times[_PLAIN_STOCK], times[_BARE]))})")
    return "\n".join(lines)


def run(settings: Settings, folder: Path) -> None:
    """Draw the images, measure, print, and check."""
    print(machine(folder))
    images = draw_photos(folder / "photos.npy", settings.images, settings.seed)
    some = images[:_PNG_IMAGES]
    print(f"{len(images)} images of {images[0].nbytes} bytes; PNG: {len(some)} of them")
    output = folder / "output"
    contestants = [contestant(name, write, images, output) for name, write in WRITERS.items()]
    contestants += [contestant(name, write, some, output) for name, write in PNG_WRITERS.items()]
    print("warm-up:", end=" ")  # because of code and memory that a virtual machine has not touched yet
    measure(contestants, 1)
    times = measure(contestants, settings.rounds)
    shutil.rmtree(output)
    print(table(times, ours=_BARE, lower_bound=_FLOOR))
    print(targets(times))
    check_with_stock_webdataset(images, folder)


if __name__ == "__main__":
    options = read_settings(sys.argv[1:])
    with workplace(options) as work_folder:
        run(options, work_folder)
