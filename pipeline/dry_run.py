"""dry_run=true: what would run, what would be skipped and why, and what it would cost."""

import math

from jobs.data.sources.build import open_source
from jobs.errors import UserError
from pipeline.plan import Step, decide
from pipeline.searches import Search
from pipeline.settings.schema import Config, Stage
from pipeline.stage_status import find
from pipeline.terminal import duration
from pipeline.workspace import Workspace

# Seen on two cores of a 2024 server CPU with the default model and 32x32 color images; see docs/architecture.md.
_IMAGES_PER_SECOND = 850
_TAR_OVERHEAD = 2048  # bytes per sample: two headers, the JSON, the padding


def make_plan(config: Config) -> list[tuple[Step, str]]:
    """Each stage's step, with what it would cost; nothing is written anywhere.

    Raises:
        UserError: a stage's input is not there, and no requested stage makes it.
    """
    workspace = Workspace(config)
    plan: list[tuple[Step, str]] = []
    running: list[Stage] = []
    for stage in config.stage:
        needed = next((one for one in _waits_for(config, stage) if one in running), None)
        if needed:
            step = Step(stage, "run", f"after {needed}, unless that makes what was there before")
        else:
            step = decide(stage, find(workspace, stage), forced=config.force)
            if stage == "tune" and step.action == "skip":
                workspace = Workspace(Search(workspace).best())
        if step.action != "skip":
            running.append(stage)
        plan.append((step, "" if step.action == "skip" else _cost(workspace, stage)))
    return plan


def _waits_for(config: Config, stage: Stage) -> tuple[Stage, ...]:
    """The stages that make what `stage` needs, the last one first."""
    if stage == "evaluate":
        # Finished trials are trainings, if a trial is a whole one.
        whole = config.tune.budget(config.train.steps) == config.train.steps
        return ("train", "tune") if whole else ("train",)
    if stage == "train":
        return ("tune", "shard")
    return ("shard",) if stage == "tune" else ()


def _cost(workspace: Workspace, stage: Stage) -> str:
    config = workspace.config
    if stage == "shard":
        try:
            source = open_source(config.data, workspace.path / "downloads", fetch=False)
            samples, size = source.num_samples, math.prod(source.image_shape)
        except UserError as error:
            return f"but its source is not here: {error}"
        tasks = math.ceil(samples / config.data.samples_per_task)
        return f"{samples:,} images in {tasks} tasks, about {samples * (size + _TAR_OVERHEAD) / 1e6:.0f} MB"
    if stage in ("tune", "train"):
        trials = config.tune.trials if stage == "tune" else 1
        steps = config.tune.budget(config.train.steps) if stage == "tune" else config.train.steps
        images = trials * steps * config.train.batch_size
        seconds = images / _IMAGES_PER_SECOND
        speed = f"the {_IMAGES_PER_SECOND} images/s of the default model on 2 cores"
        most = f"{trials} trials, none stopped early: " if stage == "tune" else ""
        return f"{most}{images:,} images, {duration(seconds)} at {speed}"
    return f"{config.evaluate.num_images:,} test images at most, a minute or two for small models"
