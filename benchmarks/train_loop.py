"""Training as a whole: the loop, several workers, deterministic sums, waiting times, and the start.

    python -m benchmarks.train_loop [parts=loop,average,workers,deterministic,stall,start] [rounds=4] [seconds=5]
                                    [threads=N] [images=20000] [checkpoint_every=250]

The default model and settings on the digit scenes of 32x32, sharded as the product does it.

- loop: the product's loop and `bare_loop.py`, from the same weights. A round has as many steps as lie between two
  checkpoints, and writes one checkpoint.
- average: the same without the moving average of the weights, on both sides.
- workers: two workers of half the threads and one worker of all.
- deterministic: deterministic and plain training.
- stall: the waiting times of the training thread.
- start: the time before the first step.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

from mlflow.entities import Dataset
from pydantic import BeforeValidator, Field

from benchmarks.gated import Bare, Group, Loop, Pipeline
from benchmarks.harness import (
    CommonSettings,
    Times,
    machine,
    measure,
    ratios,
    read_settings,
    spread,
    verdict,
    workplace,
)
from benchmarks.stalls import stalls
from benchmarks.start_up import start_up
from jobs.config import TrackingConfig, TrainConfig
from jobs.data.shard_reader import DataAccess
from jobs.data.shard_writer import write_tasks
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.shard import plan_tasks, publish
from jobs.tracking.client import Tracker
from jobs.tracking.uploader import MetricUploader
from jobs.training.state import TrainJob
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig, split_commas

Part = Literal["loop", "average", "workers", "deterministic", "stall", "start"]
_PARTS: tuple[Part, ...] = ("loop", "average", "workers", "deterministic", "stall", "start")
_PACKAGES = ("torch", "numpy", "ray", "mlflow")
_BLOCKS = 5  # of a round of the loop, measured in turn
_FOREVER = 10**6  # steps
_LAST_LOSSES = 10  # number of losses that are averaged and compared


class LoopSettings(CommonSettings):
    """Settings of the benchmark, given as key=value overrides."""

    parts: Annotated[tuple[Part, ...], BeforeValidator(split_commas)] = Field(_PARTS, description="parts to measure")
    rounds: int = Field(4, ge=1, description="rounds over all contestants; medians are printed")
    seconds: float = Field(5.0, gt=0, description="seconds of a contestant's round of workers and deterministic")
    threads: int = Field(len(os.sched_getaffinity(0)), ge=1, description="torch threads of all workers together")
    images: int = Field(20_000, ge=300, description="number of digit scenes")
    checkpoint_every: int = Field(250, ge=10, description="steps between checkpoints; the length of the loop's rounds")


class Workload:
    """The dataset of the benchmark and the trainings on it.

    Args:
        settings: Settings of the benchmark.
        folder: Empty folder for the dataset.
    """

    def __init__(self, settings: LoopSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        config = DigitsConfig(num_images=settings.images)
        source = DigitScenes(config.num_images, config.image_size, config.channels, config.scene_seed)
        self._data = DataAccess(str(folder / "digits"), folder / "cache", 2**30)
        parts = plan_tasks(source, config)
        for _ in write_tasks(source, self._data.url, parts, config):
            pass
        publish(source, config, self._data.url, parts)

    def job(self, name: str, **settings: object) -> TrainJob:
        """Return a training without end and without validation."""
        train = {"steps": _FOREVER, "checkpoint_every": self.settings.checkpoint_every, "validate_every": _FOREVER}
        return TrainJob(
            VlaeConfig(),
            ObjectiveConfig(),
            ProgressiveConfig(),
            TrainConfig.model_validate(train | settings),
            self.settings.seed,
            self._data,
            str(self.folder / name / "checkpoints"),
        )

    def uploader(self, name: str) -> MetricUploader:
        """Return the uploader of a run in an SQLite file."""
        tracker = Tracker(TrackingConfig(), self.folder)
        run_id = tracker.start_run(name, {}, Dataset("digits", "benchmark", "local", self._data.url), key=name)
        return MetricUploader(tracker, run_id)


def loop(workload: Workload, name: str, rounds: int, **settings: object) -> list[float]:
    """Measure the product's loop and the bare one, and return their ratio of speeds by round."""
    length, threads = workload.settings.checkpoint_every // _BLOCKS, workload.settings.threads
    job = workload.job(name, **settings)
    with ExitStack() as stack:
        uploader = stack.enter_context(workload.uploader(name))
        groups = {
            "pipeline": stack.enter_context(Group(Pipeline(job, threads), uploader.put)),
            "bare": stack.enter_context(Group(Bare(job, threads))),
        }
        contestants = [group.contestant(name, length) for name, group in groups.items()]
        blocks = measure(contestants, rounds * _BLOCKS, alternate=True)
        losses = [f"{name} {mean(list(group.losses.values())[-_LAST_LOSSES:]):.1f}" for name, group in groups.items()]
    times = {name: joined(block) for name, block in blocks.items()}
    print(table(times, "bare"))
    print(f"loss of the last steps, nats per image: {', '.join(losses)}")
    return ratios(times["bare"], times["pipeline"], "wall")


def joined(blocks: Times) -> Times:
    """Return the times of rounds of several blocks of equal length."""
    starts = range(0, len(blocks.wall), _BLOCKS)
    return Times(*([mean(clock[at : at + _BLOCKS]) for at in starts] for clock in (blocks.cpu, blocks.wall)))


def measure_loops(workload: Workload, loops: dict[str, Loop]) -> dict[str, Times]:
    """Measure some loops in turn, `seconds` each."""
    with ExitStack() as stack:
        entrants = []
        for name, each in loops.items():
            group = stack.enter_context(Group(each))
            entrants.append(group.contestant(name, group.steps_in(workload.settings.seconds)))
        return measure(entrants, workload.settings.rounds, alternate=True)


def layouts(workload: Workload, *, workers: bool, deterministic: bool) -> None:
    """Measure one worker and two, plain and deterministic, without checkpoints."""
    threads = workload.settings.threads
    loops: dict[str, Loop] = {}
    kinds = {"plain": False, "deterministic": True}
    for kind, is_deterministic in kinds.items():
        shapes = {f"1 x {threads}": (1, threads), f"2 x {threads // 2}": (2, threads // 2)} if workers else {}
        shapes |= {"1 x 1": (1, 1)} if deterministic else {}
        for shape, (count, threads_each) in shapes.items():
            job = workload.job(f"{kind} {shape}", deterministic=is_deterministic, checkpoint_every=_FOREVER)
            loops[f"{kind}, {shape}"] = Pipeline(job, threads_each, count)
    times = measure_loops(workload, loops)
    print(table(times, next(iter(times))))
    if deterministic:
        speed = spread(ratios(times["plain, 1 x 1"], times["deterministic, 1 x 1"], "wall"))
        print(f"deterministic, 1 x 1: speed relative to plain: {speed}")
    if workers:
        for kind in kinds:
            single, double = (times[f"{kind}, {shape}"] for shape in (f"1 x {threads}", f"2 x {threads // 2}"))
            claim = f"two workers of half the threads, {kind}: speed relative to one worker"
            print(verdict(claim, ratios(single, double, "wall"), 1.0))


def table(times: dict[str, Times], baseline: str) -> str:
    """Return a table of speed, CPU time, and speed relative to the baseline."""
    width = max(map(len, times))
    lines = [f"{'':{width}} {'images/s':>22} {'us/image CPU':>22} {f'speed / {baseline}':>22}"]
    for name, each in times.items():
        speed = spread([1e6 / wall for wall in each.wall])
        faster = spread(ratios(times[baseline], each, "wall"))
        lines.append(f"{name:{width}} {speed:>22} {spread(each.cpu):>22} {faster:>22}")
    return "\n".join(lines)


def main(settings: LoopSettings, folder: Path) -> None:
    """Measure the selected parts."""
    print(machine(folder, _PACKAGES))
    workload, parts = Workload(settings, folder), settings.parts
    count = settings.threads
    if "loop" in parts:
        print(f"\none worker of {count} threads, and the bare loop")
        speeds = loop(workload, "loop", settings.rounds)
        print(verdict("pipeline: speed relative to the bare loop", speeds, 0.97))
    if "average" in parts:
        print("\nthe same without the moving average of the weights")
        speeds = loop(workload, "average", -(-settings.rounds // _BLOCKS), ema_decay=0)
        print(f"pipeline: speed relative to the bare loop: {spread(speeds)}")
    if {"workers", "deterministic"} & set(parts):
        print("\nworkers x threads, plain and deterministic")
        layouts(workload, workers="workers" in parts, deterministic="deterministic" in parts)
    if "stall" in parts:
        print(f"\nwaiting times, one worker of {count} threads, with Ray and MLflow")
        stalls(workload.job("stall", validate_every=0), workload.uploader("stall"), count)
    if "start" in parts:
        print("\nfrom the command to the first step, and to the end; seconds")
        start_up(settings.rounds, folder, str(folder / "digits"))


if __name__ == "__main__":
    parsed = read_settings(sys.argv[1:], LoopSettings)
    with workplace(parsed) as temporary:
        main(parsed, temporary)
