"""What the benchmarks share: their settings, a clock for a process and its workers, interleaved rounds, the table."""

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

from vlae.config import SettingsModel

_PACKAGES = ("torch", "numpy", "pillow", "webdataset", "litdata")
_CLOCK_OF_PROCESS = 2  # Linux: the clock id (~pid << 3) | 2 counts the CPU time of another process


class CommonSettings(SettingsModel):
    """Words of the command line, as key=value, that every benchmark knows."""

    rounds: int = Field(5, ge=1, description="rounds over all contestants; medians are printed")
    threads: int = Field(1, ge=1, description="torch threads, for every contestant")
    seed: int = Field(0, ge=0, description="of the images and of their order")
    folder: Path | None = Field(None, description="where the temporary folder is made; the system's place if not set")
    keep: bool = Field(False, description="leave the temporary folder there")


class Settings(CommonSettings):
    """Those of the data benchmarks."""

    images: int = Field(50_000, ge=300, description="images that everyone writes and reads")
    seconds: float = Field(1.0, gt=0, description="least length of one contestant's round of reading")


AnySettings = TypeVar("AnySettings", bound=CommonSettings)


def read_settings(words: Sequence[str], kind: type[AnySettings] = Settings) -> AnySettings:
    """The settings in these words; a wrong one ends the program and says what there is."""
    try:
        settings = kind.model_validate(dict(word.split("=", 1) for word in words))
    except ValueError as error:
        keys = [f"  {key}={field.default}  {field.description}" for key, field in kind.model_fields.items()]
        raise SystemExit("\n".join([str(error), "Words are key=value:", *keys])) from None
    torch.set_num_threads(settings.threads)
    return settings


@contextmanager
def workplace(settings: CommonSettings) -> Iterator[Path]:
    """A temporary folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vlae-benchmark-", dir=settings.folder)).absolute()
    try:
        yield folder
    finally:
        if settings.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)


def machine(folder: Path, packages: Sequence[str] = _PACKAGES) -> str:
    """What the numbers depend on."""
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
    """CPU time of this process, of its worker processes, and of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = [process.pid for process in multiprocessing.active_children() if process.pid]
    alive = sum(time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS) for pid in workers)
    return time.process_time() + ended.ru_utime + ended.ru_stime + alive


def settle() -> None:
    """Wait until threads and workers have read ahead what they read ahead: it is not the next contestant's time."""
    for _ in range(40):
        before = cpu_seconds()
        time.sleep(0.05)
        if cpu_seconds() - before < 0.002:
            return


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Args:
        name: in the table.
        run: one round; returns how many images it did.
        prepare: before each round, not timed.
    """

    name: str
    run: Callable[[], int]
    prepare: Callable[[], None] = lambda: None


@dataclass
class Times:
    """What a contestant took, microseconds per image, by round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def measure(contestants: Sequence[Contestant], rounds: int, *, alternate: bool = False) -> dict[str, Times]:
    """Rounds over all contestants, one after the other: whatever else the machine does meets them all.

    Args:
        contestants: in the order of the first round.
        rounds: how many.
        alternate: every other round runs backward, so that a machine that slows down favors nobody.
    """
    times = {contestant.name: Times() for contestant in contestants}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for contestant in contestants[:: -1 if alternate and number % 2 else 1]:
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
    name: str, batches: Iterator[Sequence[object]], warm_up: int, seconds: float, longest_warm_up: float = 10.0
) -> Contestant:
    """A contestant that reads on and on: warmed up here, and then measured in its steady state.

    Args:
        name: in the table.
        batches: never ends.
        warm_up: images to read first, or as many as it can in `longest_warm_up` seconds.
        seconds: least length of a round.
        longest_warm_up: seconds.
    """
    until, done = time.perf_counter() + longest_warm_up, 0
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


def ratios(of: Times, to: Times, clock: Literal["cpu", "wall"] = "cpu") -> list[float]:
    """Time of one by that of another, round by round: both met the same machine."""
    return [mine / other for mine, other in zip(getattr(of, clock), getattr(to, clock), strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median (least-most), three digits of each."""
    numbers = median(values), min(values), max(values)
    middle, least, most = (f"{number:.{max(0, 3 - len(str(int(number))))}f}" for number in numbers)
    return f"{middle} ({least}-{most})"


def table(times: dict[str, Times], ours: str, floor: str) -> str:
    """All contestants: their times, and how many times longer than ours and than the floor they took."""
    width = max(map(len, times))
    heads = ("us/image CPU", "us/image wall", "images/s", "x ours", f"x {floor}")
    lines = [f"{'':{width}} {heads[0]:>22} {heads[1]:>22} {heads[2]:>10} {heads[3]:>20} {heads[4]:>20}"]
    for name, taken in times.items():
        lines.append(
            f"{name:{width}} {spread(taken.cpu):>22} {spread(taken.wall):>22} {1e6 / median(taken.wall):>10,.0f} "
            f"{spread(ratios(taken, times[ours])):>20} {spread(ratios(taken, times[floor])):>20}"
        )
    return "\n".join(lines)


def verdict(claim: str, measured: Sequence[float], target: float, *, at_most: bool = False) -> str:
    """A target of the project beside what was measured; nothing depends on it."""
    reached = median(measured) <= target if at_most else median(measured) >= target
    side, holds = "less" if at_most else "more", "holds" if reached else "does not hold"
    return f"{claim}: {spread(measured)}, target {target:g} or {side}: {holds}"
