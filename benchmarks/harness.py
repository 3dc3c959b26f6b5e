"""Shared by the benchmarks: settings, a clock for a process and its workers, interleaved rounds, the table."""

import gc
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import torch
from pydantic import Field

from jobs.cli import UsageError, parse_overrides
from vlae.config import SettingsModel

_PACKAGES = ("torch", "numpy", "pillow", "webdataset", "litdata")
_CLOCK_OF_PROCESS = 2  # Linux: the clock id (~pid << 3) | 2 counts the CPU time of another process


class CommonSettings(SettingsModel):
    """Settings that every benchmark has, given as key=value overrides."""

    rounds: int = Field(5, ge=1, description="rounds over all contestants; medians are printed")
    threads: int = Field(1, ge=1, description="torch threads, for every contestant")
    seed: int = Field(0, ge=0, description="random seed for images and their order")
    folder: Path | None = Field(None, description="parent of the temporary folder; default: the system's")
    keep: bool = Field(False, description="keep the temporary folder")


class Settings(CommonSettings):
    """Settings of the data benchmarks."""

    images: int = Field(50_000, ge=300, description="images that every contestant writes and reads")
    seconds: float = Field(1.0, gt=0, description="minimum seconds of one contestant's round of reading")


AnySettings = TypeVar("AnySettings", bound=CommonSettings)


def read_settings(arguments: Sequence[str], kind: type[AnySettings] = Settings) -> AnySettings:
    """Return the settings of the command line; an invalid one ends the program with the list of settings."""
    try:
        settings = kind.model_validate(parse_overrides(arguments))
    except (UsageError, ValueError) as error:
        keys = [f"  {key}={field.default}  {field.description}" for key, field in kind.model_fields.items()]
        raise SystemExit("\n".join([str(error), "Settings are given as key=value overrides:", *keys])) from None
    torch.set_num_threads(settings.threads)
    return settings


@contextmanager
def workplace(settings: CommonSettings) -> Iterator[Path]:
    """Yield a temporary folder, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vlae-benchmark-", dir=settings.folder)).absolute()
    try:
        yield folder
    finally:
        if settings.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)


def machine(folder: Path, packages: Sequence[str] = _PACKAGES) -> str:
    """Return a description of the machine and the versions that the results depend on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    disk = max((mount for mount in mounts if folder.resolve().is_relative_to(mount[0])), key=lambda m: len(m[0]))[1]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, files on {disk}, "
        f"load before {os.getloadavg()[0]:.1f}\n{platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {versions}, torch threads {torch.get_num_threads()}"
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process, its worker processes and those that have ended, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = [process.pid for process in multiprocessing.active_children() if process.pid]
    alive = sum(time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS) for pid in workers)
    return time.process_time() + ended.ru_utime + ended.ru_stime + alive


def settle() -> None:
    """Wait until threads and workers have finished reading ahead, so that it does not count for the next contestant."""
    for _ in range(40):
        before = cpu_seconds()
        time.sleep(0.05)
        if cpu_seconds() - before < 0.002:
            return


@dataclass(frozen=True)
class Contestant:
    """One implementation to measure.

    Attributes:
        name: Name in the table.
        run: Runs one round and returns the number of images.
        prepare: Called before each round, not timed.
    """

    name: str
    run: Callable[[], int]
    prepare: Callable[[], None] = lambda: None


@dataclass
class Times:
    """Times of a contestant by round, microseconds per image."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def measure(contestants: Sequence[Contestant], rounds: int, *, alternate: bool = False) -> dict[str, Times]:
    """Run rounds over all contestants in turn, so that other load on the machine affects all of them.

    Args:
        contestants: Contestants in the order of the first round.
        rounds: Number of rounds.
        alternate: Whether every other round runs backward, so that a machine that slows down favors no contestant.

    Returns:
        Times by name.
    """
    times = {contestant.name: Times() for contestant in contestants}
    for index in range(rounds):
        print(f"round {index + 1} of {rounds}", flush=True)
        for contestant in contestants[:: -1 if alternate and index % 2 else 1]:
            contestant.prepare()
            gc.collect()
            settle()
            wall, cpu = time.perf_counter(), cpu_seconds()
            images = contestant.run()
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
            times[contestant.name].cpu.append(cpu / images * 1e6)
            times[contestant.name].wall.append(wall / images * 1e6)
    return times


def endless(
    name: str, batches: Iterator[Sequence[object]], warm_up: int, seconds: float, max_warm_up: float = 10.0
) -> Contestant:
    """Warm up a contestant that reads endlessly, so that rounds measure its steady state.

    Args:
        name: Name in the table.
        batches: Endless batches.
        warm_up: Images to read first, or as many as possible in `max_warm_up` seconds.
        seconds: Minimum length of a round.
        max_warm_up: Maximum seconds of the warm-up.

    Returns:
        The contestant.
    """
    until, done = time.perf_counter() + max_warm_up, 0
    while done < warm_up and time.perf_counter() < until:
        done += len(next(batches))
    start = time.perf_counter()
    sample = sum(map(len, itertools.islice(batches, 20)))
    count = seconds * sample / (time.perf_counter() - start)

    def run() -> int:
        images = 0
        while images < count:
            images += len(next(batches))
        return images

    return Contestant(name, run)


def ratios(times: Times, baseline: Times, clock: Literal["cpu", "wall"] = "cpu") -> list[float]:
    """Return the times divided by the baseline's, round by round, because both then saw the same machine."""
    return [time / base for time, base in zip(getattr(times, clock), getattr(baseline, clock), strict=True)]


def spread(values: Sequence[float]) -> str:
    """Return the median (minimum-maximum) with three digits each."""
    middle, lowest, highest = (
        f"{value:.{max(0, 3 - len(str(int(value))))}f}" for value in (median(values), min(values), max(values))
    )
    return f"{middle} ({lowest}-{highest})"


def table(times: dict[str, Times], ours: str, lower_bound: str) -> str:
    """Return a table of all contestants: their times, and the ratios to ours and to the lower bound."""
    width = max(map(len, times))
    heads = ("us/image CPU", "us/image wall", "images/s", "x ours", f"x {lower_bound}")
    lines = [f"{'':{width}} {heads[0]:>22} {heads[1]:>22} {heads[2]:>10} {heads[3]:>20} {heads[4]:>20}"]
    for name, taken in times.items():
        lines.append(
            f"{name:{width}} {spread(taken.cpu):>22} {spread(taken.wall):>22} {1e6 / median(taken.wall):>10,.0f} "
            f"{spread(ratios(taken, times[ours])):>20} {spread(ratios(taken, times[lower_bound])):>20}"
        )
    return "\n".join(lines)


def verdict(claim: str, measured: Sequence[float], target: float, *, at_most: bool = False) -> str:
    """Return a line that compares measurements with a target of the project."""
    reached = median(measured) <= target if at_most else median(measured) >= target
    side, holds = "less" if at_most else "more", "holds" if reached else "does not hold"
    return f"{claim}: {spread(measured)}, target {target:g} or {side}: {holds}"
