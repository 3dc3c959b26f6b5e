"""Writing a dataset: CPU and wall time per image, ours and others'.

    python -m benchmarks.data_write [images=50000] [rounds=5] [threads=1] [folder=DIR] [keep=true]

Everyone gets the same images from memory and writes them with their labels, 4,096 to a file, from one process.
Ours also hashes every byte and writes an index; `write_parts` is what a shard task does, so that it also forces
the files to the disk (fsync), which nobody else does: look at its wall time for that.
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
from jobs.data.shard_writer import ShardWriter, write_parts
from jobs.shard import plan_parts

Images = NDArray[np.uint8]
Write = Callable[[Images, Path], None]

_PNG_IMAGES = 5000  # of a round: PNG takes a millisecond each
_WHOLE, _BARE, _FLOOR = "ours npy, write_parts", "ours npy, ShardWriter", "np.tofile"
_STOCK, _PLAIN_STOCK = "webdataset npy, mtime=0", "webdataset npy"


def ours_whole(images: Images, folder: Path) -> None:
    """Tars, hashes, indexes and task files, published with fsync."""
    source, config = PhotoSource(images), data_config("npy")
    for _ in write_parts(source, str(folder), plan_parts(source, config), config):
        pass


def ours_bare(images: Images, folder: Path, encoding: Encoding) -> None:
    """Tars, hashes and indexes, left to the page cache as the others leave theirs."""
    source = PhotoSource(images)
    names = [factor.name for factor in source.factors]
    for number, start in enumerate(range(0, len(images), IMAGES_PER_SHARD)):
        writer = ShardWriter(folder, f"train-{number:05d}", "train", SHAPE, names, encoding)
        for sample in source.read(start, min(start + IMAGES_PER_SHARD, len(images))):
            writer.write(sample)
        writer.close()


def webdataset(images: Images, folder: Path, extension: str, **settings: object) -> None:
    """As its documentation writes."""
    pattern = str(folder / "%05d.tar")
    with wds.ShardWriter(pattern, maxcount=IMAGES_PER_SHARD, verbose=0, **settings) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": key_of(number), extension: image, "json": label_of(number)})


def litdata(images: Images, folder: Path) -> None:
    """What a worker of its optimize() does with each sample."""
    cache = Cache(input_dir=str(folder), chunk_size=IMAGES_PER_SHARD)
    for number, image in enumerate(images):
        cache._add_item(number, {"image": image, **label_of(number)})
    cache.done()
    cache.merge()


def tofile(images: Images, folder: Path) -> None:
    """The bare pixels: nothing that writes them can take less."""
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
    """Each round writes into an empty folder, with nothing else waiting for the disk.

    A virtual machine gives free memory back to its host, and getting it again takes longer than filling it: what
    the page cache will need is taken and freed beforehand, for everybody.
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
    """Every sample of our tars is, in stock webdataset, the one that was written."""
    counts: dict[Encoding, int] = {"npy": len(images), "png": min(len(images), _PNG_IMAGES)}
    for encoding, count in counts.items():
        write_dataset(images[:count], folder / encoding, encoding)
        tars = sorted(map(str, (folder / encoding).glob("*.tar")))
        seen = np.zeros(count, bool)
        for sample in wds.WebDataset(tars, shardshuffle=False).decode("rgb8"):
            number = int(sample["__key__"])
            if not np.array_equal(sample[encoding], images[number]) or sample["json"] != label_of(number):
                raise AssertionError(f"webdataset reads another sample {sample['__key__']} from {encoding} tars")
            seen[number] = True
        if not seen.all():
            raise AssertionError(f"webdataset misses {np.sum(~seen)} samples of our {encoding} tars")
        print(f"stock webdataset reads all {count} samples of our {encoding} tars, equal to the bit")


def targets(times: dict[str, Times]) -> str:
    """What the project wants of its writer."""
    lines = [
        verdict(f"{ours}, times faster than {_STOCK}, CPU per core", ratios(times[_STOCK], times[ours]), 5)
        for ours in (_BARE, _WHOLE)
    ]
    lines.append(f"(than {_PLAIN_STOCK} with its default mtime: {spread(ratios(times[_PLAIN_STOCK], times[_BARE]))})")
    return "\n".join(lines)


def run(settings: Settings, folder: Path) -> None:
    """Draw, measure, print, check."""
    print(machine(folder))
    images = draw_photos(folder / "photos.npy", settings.images, settings.seed)
    some = images[:_PNG_IMAGES]
    print(f"{len(images)} images of {images[0].nbytes} bytes; PNG: {len(some)} of them")
    output = folder / "output"
    contestants = [contestant(name, write, images, output) for name, write in WRITERS.items()]
    contestants += [contestant(name, write, some, output) for name, write in PNG_WRITERS.items()]
    print("warm-up:", end=" ")  # of the code, and of memory that a virtual machine has not touched yet
    measure(contestants, 1)
    times = measure(contestants, settings.rounds)
    shutil.rmtree(output)
    print(table(times, ours=_BARE, floor=_FLOOR))
    print(targets(times))
    check_with_stock_webdataset(images, folder)


if __name__ == "__main__":
    chosen = read_settings(sys.argv[1:])
    with workplace(chosen) as place:
        run(chosen, place)
