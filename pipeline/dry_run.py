"""dry_run=true: what would run, what would be skipped and why, and what it would cost."""

import math

from pipeline.config import Config, Stage
from pipeline.plan import NEEDS, decide
from pipeline.report import duration
from pipeline.workspace import Workspace, find

# Seen on two cores of a 2024 server CPU with the default model and 32x32 colour images; see docs/architecture.md.
_IMAGES_PER_SECOND = 850
_TAR_OVERHEAD = 2048  # bytes per sample: two headers, the JSON, the padding


def print_plan(config: Config) -> None:
    """Print the plan of a command on stdout; nothing is written anywhere.

    Raises:
        UserError: a stage's input is not there, and no requested stage makes it.
    """
    workspace = Workspace(config)
    print(f"plan for {workspace.path} (nothing is done)")
    changed: list[Stage] = []
    for stage in config.stage:
        needed = NEEDS.get(stage)
        found = "nothing" if needed in changed else find(workspace, stage, config)
        step = decide(stage, found, forced=config.force)
        cost = "" if step.action == "skip" else f"; {_cost(workspace, stage, config)}"
        print(f"  {stage:<9}{step.action:<8}{step.reason}{cost}")
        if step.action != "skip":
            changed.append(stage)


def _cost(workspace: Workspace, stage: Stage, config: Config) -> str:
    if stage == "shard":
        if workspace.source is None:
            return "its source is not here yet"
        samples, size = workspace.source.num_samples, math.prod(workspace.source.image_shape)
        tasks = math.ceil(samples / config.data.samples_per_task)
        return f"{samples:,} images in {tasks} tasks, about {samples * (size + _TAR_OVERHEAD) / 1e6:.0f} MB"
    if stage == "train":
        images = config.train.steps * config.train.batch_size
        seconds = images / _IMAGES_PER_SECOND
        speed = f"the {_IMAGES_PER_SECOND} images/s of the default model on 2 cores"
        return f"{images:,} images, {duration(seconds)} at {speed}"
    return f"{config.evaluate.num_images:,} test images at most, well under a minute for small models"
