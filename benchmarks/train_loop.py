"""Training as a whole: the loop, several workers, exact sums, what training waits for, and the start.

    python -m benchmarks.train_loop [parts=loop,average,workers,exact,stall,start] [rounds=4] [seconds=5] [threads=N]
                                    [images=20000] [checkpoint_every=250]

The default model and settings on the digit scenes of 32x32, sharded as the product does it.

- loop: the product's loop beside `bare_loop.py`. Both start from the same weights; a round is as many steps as lie
  between two checkpoints, one of which is written in it.
- average: the same without the moving average of the weights, on both sides.
- workers: two workers of half the threads beside one worker of all. exact: exact sums beside plain ones.
- stall: what the training thread waits for. start: what comes before the first step.
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
from jobs.data.shard_writer import write_parts
from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes
from jobs.shard import plan_parts, publish
from jobs.tracking.client import Tracker
from jobs.tracking.uploader import MetricUploader
from jobs.training.state import TrainJob
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig, split_commas

Part = Literal["loop", "average", "workers", "exact", "stall", "start"]
_PARTS: tuple[Part, ...] = ("loop", "average", "workers", "exact", "stall", "start")
_PACKAGES = ("torch", "numpy", "ray", "mlflow")
_BLOCKS = 5  # of a round of the loop, taken in turn
_FOREVER = 10**6  # steps
_LAST_LOSSES = 10  # that are averaged and compared


class LoopSettings(CommonSettings):
    """Words of the command line, as key=value."""

    parts: Annotated[tuple[Part, ...], BeforeValidator(split_commas)] = Field(_PARTS, description="what is measured")
    rounds: int = Field(4, ge=1, description="rounds over all contestants; medians are printed")
    seconds: float = Field(5.0, gt=0, description="length of a contestant's round of workers and exact")
    threads: int = Field(len(os.sched_getaffinity(0)), ge=1, description="torch threads of all workers together")
    images: int = Field(20_000, ge=300, description="digit scenes")
    checkpoint_every: int = Field(250, ge=10, description="steps between checkpoints; the length of the loop's rounds")


class Place:
    """The dataset of the benchmark, and what is trained on it.

    Args:
        settings: of the command.
        folder: empty; the dataset is written into it.
    """

    def __init__(self, settings: LoopSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        config = DigitsConfig(num_images=settings.images)
        source = DigitScenes(config.num_images, config.image_size, config.channels, config.scene_seed)
        self._data = DataAccess(str(folder / "digits"), folder / "cache", 2**30)
        parts = plan_parts(source, config)
        for _ in write_parts(source, self._data.url, parts, config):
            pass
        publish(source, config, self._data.url, parts)

    def job(self, name: str, **settings: object) -> TrainJob:
        """A training that does not end, without validation; its checkpoints lie below its name."""
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

    def sender(self, name: str) -> MetricUploader:
        """Of a run in an SQLite file."""
        tracker = Tracker(TrackingConfig(), self.folder)
        run_id = tracker.start_run(name, {}, Dataset("digits", "benchmark", "local", self._data.url), key=name)
        return MetricUploader(tracker, run_id, self.folder / "spool")


def loop(place: Place, name: str, rounds: int, **settings: object) -> list[float]:
    """The product's loop beside the bare one; returns their ratio of speeds by round."""
    length, threads = place.settings.checkpoint_every // _BLOCKS, place.settings.threads
    job = place.job(name, **settings)
    with ExitStack() as stack:
        sender = stack.enter_context(place.sender(name))
        groups = {
            "pipeline": stack.enter_context(Group(Pipeline(job, threads), sender.take)),
            "bare": stack.enter_context(Group(Bare(job, threads))),
        }
        contestants = [group.contestant(who, length) for who, group in groups.items()]
        blocks = measure(contestants, rounds * _BLOCKS, alternate=True)
        losses = [f"{who} {mean(list(group.losses.values())[-_LAST_LOSSES:]):.1f}" for who, group in groups.items()]
    times = {who: joined(taken) for who, taken in blocks.items()}
    print(table(times, "bare"))
    print(f"loss of the last steps, nats per image: {', '.join(losses)}")
    return ratios(times["bare"], times["pipeline"], "wall")


def joined(blocks: Times) -> Times:
    """Rounds of several blocks of equal length."""
    starts = range(0, len(blocks.wall), _BLOCKS)
    return Times(*([mean(clock[at : at + _BLOCKS]) for at in starts] for clock in (blocks.cpu, blocks.wall)))


def crowd(place: Place, contestants: dict[str, Loop]) -> dict[str, Times]:
    """Some loops in turn, `seconds` each."""
    with ExitStack() as stack:
        entrants = []
        for name, contestant in contestants.items():
            group = stack.enter_context(Group(contestant))
            entrants.append(group.contestant(name, group.steps_in(place.settings.seconds)))
        return measure(entrants, place.settings.rounds, alternate=True)


def layouts(place: Place, *, workers: bool, exact: bool) -> None:
    """One worker and two, plain and exact, without checkpoints."""
    threads = place.settings.threads
    contestants: dict[str, Loop] = {}
    kinds = {"plain": False, "exact": True} if exact or workers else {}
    for kind, adds in kinds.items():
        shapes = {f"1 x {threads}": (1, threads), f"2 x {threads // 2}": (2, threads // 2)} if workers else {}
        shapes |= {"1 x 1": (1, 1)} if exact else {}
        for shape, (count, each) in shapes.items():
            job = place.job(f"{kind} {shape}", exact=adds, checkpoint_every=_FOREVER)
            contestants[f"{kind}, {shape}"] = Pipeline(job, each, count)
    times = crowd(place, contestants)
    print(table(times, next(iter(times))))
    if exact:
        print(f"exact by plain, 1 x 1, speed: {spread(ratios(times['plain, 1 x 1'], times['exact, 1 x 1'], 'wall'))}")
    if workers:
        for kind in kinds:
            one, two = (times[f"{kind}, {shape}"] for shape in (f"1 x {threads}", f"2 x {threads // 2}"))
            claim = f"two workers of half the threads, {kind}: speed by that of one worker"
            print(verdict(claim, ratios(one, two, "wall"), 1.0))


def table(times: dict[str, Times], of: str) -> str:
    """Speed, CPU time, and speed by that of one of them."""
    width = max(map(len, times))
    lines = [f"{'':{width}} {'images/s':>22} {'us/image CPU':>22} {f'speed by {of}':>22}"]
    for name, taken in times.items():
        speed = spread([1e6 / wall for wall in taken.wall])
        faster = spread(ratios(times[of], taken, "wall"))
        lines.append(f"{name:{width}} {speed:>22} {spread(taken.cpu):>22} {faster:>22}")
    return "\n".join(lines)


def main(settings: LoopSettings, folder: Path) -> None:
    """The parts that are wanted."""
    print(machine(folder, _PACKAGES))
    place, parts = Place(settings, folder), settings.parts
    count = settings.threads
    if "loop" in parts:
        print(f"\none worker of {count} threads, beside the bare loop")
        speeds = loop(place, "loop", settings.rounds)
        print(verdict("pipeline: speed by that of the bare loop", speeds, 0.97))
    if "average" in parts:
        print("\nthe same without the moving average of the weights")
        speeds = loop(place, "average", -(-settings.rounds // _BLOCKS), ema_decay=0)
        print(f"pipeline: speed by that of the bare loop: {spread(speeds)}")
    if {"workers", "exact"} & set(parts):
        print("\nworkers x threads, plain and exact")
        layouts(place, workers="workers" in parts, exact="exact" in parts)
    if "stall" in parts:
        print(f"\nwhat training waits for, one worker of {count} threads, with Ray and MLflow beside it")
        stalls(place.job("stall", validate_every=0), place.sender("stall"), count)
    if "start" in parts:
        print("\nfrom the command to the first step, and to the end; seconds")
        start_up(settings.rounds, folder, str(folder / "digits"))


if __name__ == "__main__":
    chosen = read_settings(sys.argv[1:], LoopSettings)
    with workplace(chosen) as made:
        main(chosen, made)
