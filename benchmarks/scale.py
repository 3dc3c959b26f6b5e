"""Order, slices and index at sizes that no machine here has: simulated workers run the real code, one after the other.

    python -m benchmarks.scale [samples=1000000000] [ranks=1000] [images=64] [block_shards=0] [parts=once,sizes,files]

- once: every rank's samples of one epoch, marked one by one: each sample exactly once, and what a rank pays.
- sizes: one rank's time and memory beside the number of ranks, and beside the number of samples.
- files: bytes of the manifest and of the indexes, and what a worker pays to read the manifest.
"""

import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from benchmarks.harness import machine, read_settings
from jobs.data.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from jobs.data.sampling import GlobalShuffle, microbatch_positions, worker_microbatches
from jobs.data.sources.base import Factor
from jobs.storage import open_storage
from vlae.config import SettingsModel, split_commas

Part = Literal["once", "sizes", "files"]
_SHARD_SAMPLES = 5000
_STEPS = 2000  # that are timed
_SHARDS = 2000  # of the manifest that is written
_FACTORS = 6


class ScaleSettings(SettingsModel):
    """Settings of the command line, given as `key=value` overrides."""

    parts: Annotated[tuple[Part, ...], BeforeValidator(split_commas)] = Field(
        ("once", "sizes", "files"), description="what is simulated"
    )
    samples: int = Field(10**9, ge=1000, description="samples of the train split")
    ranks: int = Field(1000, ge=1, description="simulated workers, each with one microbatch of the global batch")
    images: int = Field(64, ge=1, description="images per rank and step")
    block_shards: int = Field(0, ge=0, description="shards that are shuffled together; 0: all")
    seed: int = Field(0, ge=0, description="random seed of the order")
    threads: int = Field(1, ge=1, description="torch threads")


def shard_sizes(samples: int) -> NDArray[np.int64]:
    """Return the sizes of the shards of a dataset; the last shard has the rest."""
    sizes = np.full(-(-samples // _SHARD_SAMPLES), _SHARD_SAMPLES, np.int64)
    sizes[-1] = samples - _SHARD_SAMPLES * (len(sizes) - 1)
    return sizes


def once(settings: ScaleSettings) -> None:
    """Mark the samples of every rank over one epoch. As many are read as exist: if all are marked, each was read once.

    Raises:
        SystemExit: A sample was read twice, and so another one never.
    """
    samples, ranks, images = settings.samples, settings.ranks, settings.images
    steps, rest = divmod(samples, ranks * images)
    if rest:
        raise SystemExit(f"samples={samples} is not a multiple of ranks * images = {ranks * images}")
    seen, seconds = np.zeros(samples, bool), []
    for rank in range(ranks):
        start = time.perf_counter()
        order = GlobalShuffle(
            shard_sizes(samples), batch_size=ranks * images, seed=settings.seed, block_shards=settings.block_shards
        )
        positions = microbatch_positions(worker_microbatches(ranks, rank, ranks), images)
        numbers = np.concatenate([order.sample_ids(step, positions) for step in range(steps)])
        seconds.append(time.perf_counter() - start)
        seen[numbers] = True
        if sys.stderr.isatty():
            print(f"\rrank {rank + 1} of {ranks}", end="", file=sys.stderr, flush=True)
    if not seen.all():
        raise SystemExit(f"{samples - int(seen.sum()):,} samples were never read")
    first, last = median(seconds[: ranks // 10 or 1]), median(seconds[-(ranks // 10 or 1) :])
    print(
        f"{samples:,} samples, {ranks} ranks, {steps:,} steps, block_shards={settings.block_shards}: each sample once; "
        f"a rank's epoch takes {median(seconds):.2f} s (first tenth of the ranks {first:.2f}, last {last:.2f}), "
        f"that is {median(seconds) / steps * 1e6:.1f} us a step"
    )


def cost(samples: int, ranks: int, images: int, block_shards: int) -> str:
    """Of one rank in the middle: time of a step and of the first one, memory held and at most."""
    sizes = shard_sizes(samples)
    positions = microbatch_positions(worker_microbatches(ranks, ranks // 2, ranks), images)
    tracemalloc.start()
    began = time.perf_counter()
    order = GlobalShuffle(sizes, batch_size=ranks * images, seed=0, block_shards=block_shards)
    order.sample_ids(0, positions)
    first = time.perf_counter() - began
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    began = time.perf_counter()
    for step in range(_STEPS):
        order.sample_ids(step, positions)
        order.blocks(step)
    each = (time.perf_counter() - began) / _STEPS
    return f"{each * 1e6:9.1f} us {first * 1e3:9.1f} ms {held / 1e6:9.2f} MB {peak / 1e6:9.2f} MB"


def sizes_table(settings: ScaleSettings) -> None:
    """Cost beside the number of ranks, then beside that of samples; without and with windows of 100 shards."""
    print(f"{'samples':>15} {'ranks':>6} {'block':>7} {'a step':>12} {'first step':>12} {'held':>12} {'at most':>12}")
    for block in (0, 100):
        for samples, ranks in [
            *((settings.samples, count) for count in (1, 10, 100, 1000)),
            *((10**power, 1000) for power in range(5, 11)),
        ]:
            print(f"{samples:15,} {ranks:6} {block:7} {cost(samples, ranks, settings.images, block)}")


def files() -> None:
    """Bytes per shard of the manifest and per sample of an index, and the time to read the former."""
    digest = "0123456789abcdef" * 4
    shards = [
        Shard(f"train-{n:05d}", "train", _SHARD_SAMPLES, 25_000_000, digest, digest, None) for n in range(_SHARDS)
    ]
    factors = tuple(Factor(f"factor{n}", tuple(map(str, range(10)))) for n in range(_FACTORS))
    with tempfile.TemporaryDirectory() as folder:
        store = open_storage(folder)
        write_manifest(store, Manifest((32, 32, 3), "npy", factors, "none", tuple(shards)))
        size = (Path(folder) / MANIFEST).stat().st_size / _SHARDS
        began = time.perf_counter()
        read_manifest(store)
        seconds = (time.perf_counter() - began) / _SHARDS
        np.save(Path(folder) / "index.npy", np.zeros((_SHARD_SAMPLES, 2 + _FACTORS), np.int64))
        index = (Path(folder) / "index.npy").stat().st_size / _SHARD_SAMPLES
    print(f"manifest: {size:.0f} bytes and {seconds * 1e6:.1f} us per shard; index: {index:.1f} bytes per sample")
    for power in range(5, 11):
        samples = 10**power
        count = -(-samples // _SHARD_SAMPLES)
        print(
            f"{samples:15,} samples: {count:9,} shards of {_SHARD_SAMPLES}, manifest {count * size / 1e6:9.2f} MB read "
            f"in {count * seconds:7.3f} s, indexes {samples * index / 1e9:8.3f} GB"
        )


def main(settings: ScaleSettings) -> None:
    """The parts that are wanted."""
    print(machine(Path(tempfile.gettempdir()), ("numpy",)))
    if "files" in settings.parts:
        files()
    if "sizes" in settings.parts:
        sizes_table(settings)
    if "once" in settings.parts:
        once(settings)


if __name__ == "__main__":
    main(read_settings(sys.argv[1:], ScaleSettings))
