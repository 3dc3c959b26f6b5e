"""Measure the cost of the order of a billion samples, and the time to the first batch of a new process.

    python -m benchmarks.data_resume [images=50000] [rounds=5] [threads=1] [folder=DIR] [keep=true]

The first batch of a new process is read as the training reads it, at step 0 and at 90 % of an epoch. In both cases all
shards are opened and verified first, so that a difference between the two is the cost of a resume.
"""

import json
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Settings, machine, read_settings, spread, workplace
from benchmarks.photos import IMAGES_PER_SHARD, draw_photos, write_dataset
from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import GlobalShuffle
from jobs.data.shard_reader import DataAccess

_SAMPLES, _ORDER_BATCH = 10**9, 4096
_BATCH = 128
_ROOT = Path(__file__).parents[1]
_CHILD = "import sys; from benchmarks.data_resume import first_batch; first_batch(*sys.argv[1:])"


def first_batch(folder: str, step: str, seed: str) -> None:
    """Print the seconds to the first batch, and its checksum; runs in a new process."""
    wall, cpu = time.perf_counter(), time.process_time()
    loader = _loader(Path(folder), int(seed))
    opened = sum(1 for _ in loader.open(int(step)))
    images = next(loader.batches(int(step), int(step) + 1))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    checksum = _checksum(images.permute(0, 2, 3, 1).numpy())
    print(json.dumps({"wall": wall, "cpu": cpu, "opened": opened, "checksum": checksum}))


def _loader(folder: Path, seed: int) -> BatchLoader:
    data = ShardedDataset(DataAccess(str(folder), folder.with_name("cache"), 2**40), "train")
    return BatchLoader(data, GlobalShuffle(data.shard_sizes, batch_size=_BATCH, seed=seed), num_microbatches=1)


def _checksum(images: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(images).data)


def resume(settings: Settings, folder: Path) -> None:
    """Time new processes at both steps alternately, and check their batches."""
    photos = draw_photos(folder / "photos.npy", settings.images, settings.seed)
    manifest = write_dataset(photos, folder / "npy", "npy")
    loader = _loader(folder / "npy", settings.seed)
    shards = manifest.of_split("train")
    taken: dict[int, list[dict[str, float]]] = {step: [] for step in (0, len(loader.data) * 9 // 10 // _BATCH)}
    for _ in range(settings.rounds):
        for step, times in taken.items():
            command = [sys.executable, "-c", _CHILD, str(folder / "npy"), str(step), str(settings.seed)]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)  # noqa: S603  (the command is constant)
            result = json.loads(done.stdout) | {"process": time.perf_counter() - start}
            expected = _checksum(photos[loader.order.batch(step)]), len(shards)
            if (result["checksum"], result["opened"]) != expected:
                raise AssertionError(f"a new process reads other images at step {step}")
            times.append(result)
    size = sum(shard.num_bytes for shard in shards) / 2**20
    print(f"first batch of a new process, {len(shards)} shards of {size:.0f} MiB in all verified; seconds")
    for step, times in taken.items():
        wall, cpu, whole = (spread([time[key] for time in times]) for key in ("wall", "cpu", "process"))
        progress = step * _BATCH / len(loader.data)
        print(f"  step {step} ({progress:.0%} of an epoch): {wall}, CPU {cpu}; with Python's start and imports {whole}")


def milliseconds(work: Callable[[], object]) -> float:
    """Return the duration of one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def order_of_a_billion(settings: Settings) -> None:
    """Print time and memory of the order, of all samples together and in blocks of shards."""
    sizes = np.full(-(-_SAMPLES // IMAGES_PER_SHARD), IMAGES_PER_SHARD, np.int64)
    sizes[-1] -= sizes.sum() - _SAMPLES
    late = _SAMPLES * 9 // 10 // _ORDER_BATCH
    print(f"order of {_SAMPLES:,} samples in {len(sizes):,} shards, batches of {_ORDER_BATCH}")
    for block_shards, name in ((0, "all shuffled together"), (256, "blocks of 256 shards")):
        make = partial(GlobalShuffle, sizes, batch_size=_ORDER_BATCH, seed=settings.seed, block_shards=block_shards)
        build = [milliseconds(make) for _ in range(settings.rounds)]
        first = [milliseconds(partial(make().batch, late)) for _ in range(settings.rounds)]
        tracemalloc.start()
        order = make()
        order.batch(late)
        kept, peak = (size / 2**20 for size in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        further = [milliseconds(partial(order.batch, late + step)) for step in range(20)]
        print(
            f"  {name}: build {spread(build)} ms, first batch at 90 % {spread(first)} ms, each further "
            f"{spread(further)} ms; memory {kept:.3f} MiB kept, {peak:.3f} MiB at its peak"
        )


def run(settings: Settings, folder: Path) -> None:
    """Run both measurements."""
    print(machine(folder))
    order_of_a_billion(settings)
    resume(settings, folder)


if __name__ == "__main__":
    options = read_settings(sys.argv[1:])
    with workplace(options) as work_folder:
        run(options, work_folder)
