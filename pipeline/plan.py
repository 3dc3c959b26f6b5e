"""Decide which stages must run, from what earlier commands completed. Imports neither torch nor Ray."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from jobs.cli import format_duration
from jobs.data.manifest import finished_tasks
from jobs.data.sources.listing import describe_left_out
from jobs.errors import MissingSourceError, UserError
from pipeline.records import EvaluateRecord, TrainRecord
from pipeline.searches import Search
from pipeline.settings.schema import STAGES, Config, Stage, format_value
from pipeline.workspace import Workspace

Action = Literal["run", "resume", "skip"]
StageStatus = Literal["complete", "partial", "missing"]

# The stage whose output a stage reads.
_INPUTS: dict[Stage, Stage] = {"tune": "shard", "train": "shard", "evaluate": "train"}
# Measured on two cores of a 2024 server CPU with the default model and 32x32 color images; see docs/architecture.md.
_IMAGES_PER_SECOND = 850
_TAR_OVERHEAD = 2048  # bytes per sample: two headers, the JSON, the padding


@dataclass(frozen=True)
class Step:
    """What happens to a stage, why, and (only in a plan) an estimate of its work in words."""

    stage: Stage
    action: Action
    reason: str
    cost: str = ""


def decide(stage: Stage, status: StageStatus, *, forced: Collection[Stage]) -> Step:
    """Decide what happens to a stage with this status; stages in `forced` run even if they are complete."""
    if stage in forced:
        return Step(stage, "run", f"force={stage}")
    if status == "partial":
        return Step(stage, "resume", "an earlier command was interrupted")
    if status == "missing":
        return Step(stage, "run", "not complete yet")
    return Step(stage, "skip", "complete, with the same settings and inputs")


def missing_input(stage: Stage, requested: Collection[Stage]) -> str | None:
    """Return the error message for a stage whose input does not exist, None if a requested stage makes the input."""
    needed = _INPUTS.get(stage)
    if needed is None or needed in requested:
        return None
    stages = [name for name in STAGES[: STAGES.index(stage) + 1] if name != "tune" or name in (stage, *requested)]
    return (
        f"stage={stage}: the output of stage {needed} does not exist for these settings and this data. "
        f"Run stage={','.join(stages)}, which skips every completed stage."
    )


def stage_status(workspace: Workspace, stage: Stage) -> StageStatus:
    """Return what earlier commands completed of a stage, for these settings and inputs.

    Raises:
        UserError: The input of the stage does not exist, and no requested stage makes it.
    """
    config = workspace.config
    if stage == "shard" and "shard" in config.force:  # without a look at the files, which may be damaged
        return "missing"
    dataset = workspace.dataset()
    if stage == "shard":
        if dataset:
            if dataset.num_skipped and config.data.on_error == "error":
                raise dataset.decode_error()
            return "complete"
        store = workspace.data_storage
        return "partial" if store and finished_tasks(store) else "missing"
    if dataset is None:
        message = missing_input(stage, config.stage)
        if config.model_uri:  # a registered model needs no training
            message = "stage=evaluate: no shards of this data. Run stage=shard,evaluate."
            message = None if "shard" in config.stage else message
        if message:
            raise UserError(message)
        return "missing"
    if stage == "tune":
        if "tune" in config.force:
            return "missing"
        search = Search(workspace)
        return "complete" if search.is_complete else "partial" if search.trials else "missing"
    run = workspace.run(dataset)
    trained, evaluated = run.read(TrainRecord), run.read(EvaluateRecord)
    if stage == "train":
        if trained or run.has_checkpoints:
            return "complete" if trained else "partial"
        if config.resume:
            raise UserError(
                f"resume={config.resume}: no checkpoint in {run.checkpoint_url}. Set storage_path= to the folder that "
                "holds it, or repeat the command that started the run."
            )
        return "missing"
    if not config.model_uri:
        if trained is None:
            if message := missing_input(stage, config.stage):
                raise UserError(message)
            return "missing"
        if evaluated and evaluated.weights_sha256 != trained.weights_sha256:
            return "missing"
    return "complete" if evaluated and evaluated.key == workspace.evaluate_key() else "missing"


def make_plan(config: Config) -> list[Step]:
    """Return a step per stage, with its cost, without writing anything.

    Raises:
        UserError: The input of a stage does not exist, and no requested stage makes it.
    """
    workspace = Workspace(config)
    plan: list[Step] = []
    running: list[Stage] = []
    for stage in config.stage:
        inputs: tuple[Stage, ...] = ()  # the stages that make the input, the last one first
        if stage == "evaluate":
            # A finished trial is a training if it has all steps.
            whole = config.tune.budget(config.train.steps) == config.train.steps
            inputs = ("train", "tune") if whole else ("train",)
        elif stage in ("tune", "train"):
            inputs = ("tune", "shard") if stage == "train" else ("shard",)
        if awaited := next((name for name in inputs if name in running), None):
            step = Step(stage, "run", f"after {awaited}, unless its output is unchanged", _cost(workspace, stage))
        else:
            step = decide(stage, stage_status(workspace, stage), forced=config.force)
            if step.action != "skip":
                step = Step(stage, step.action, step.reason, _cost(workspace, stage))
            elif stage == "shard":
                step = Step(stage, step.action, step.reason, missing_data(workspace))
            elif stage == "tune":
                workspace = Workspace(Search(workspace).best())
        if step.action != "skip":
            running.append(stage)
        plan.append(step)
    return plan


def missing_data(workspace: Workspace) -> str:
    """Return what complete shards lack: the source, the files left out, the skipped images; empty if nothing."""
    dataset, source = workspace.dataset(), workspace.source
    if dataset is None:
        return ""
    # A sequential source would read all its files to know what it leaves out.
    left_out = dataset.left_out if source is None or source.sequential else source.left_out
    skipped = f"skipped {dataset.skipped_names}" if dataset.num_skipped else ""
    missing = "" if source else "the source is missing, so the existing shards are used"
    return "; ".join(filter(None, (missing, describe_left_out(left_out), skipped)))


def _cost(workspace: Workspace, stage: Stage) -> str:
    """Return the work of a stage, in words."""
    config = workspace.config
    if stage == "shard":
        try:
            source = workspace.source or workspace.open_source(fetch=False)
        except MissingSourceError as error:
            return f"the source is missing: {error}"
        samples, bytes_per_sample = source.num_samples, math.prod(source.image_shape) + _TAR_OVERHEAD
        tasks = math.ceil(samples / config.data.samples_per_task)
        size = f"{samples:,} images in {tasks} tasks, about {samples * bytes_per_sample / 1e6:.0f} MB"
        return "; ".join(filter(None, (size, describe_left_out(source.left_out))))
    if stage == "evaluate":
        return f"up to {config.evaluate.num_images:,} test images, one to two minutes for small models"
    trials, steps, note = 1, config.train.steps, ""
    if stage == "tune":
        trials, steps = config.tune.trials, config.tune.budget(steps)
        note = f"{trials} trials of {format_value(config.tune.param_space)}, none stopped early: "
    images = trials * steps * config.train.batch_size
    duration = format_duration(images / _IMAGES_PER_SECOND)
    return f"{note}{images:,} images, {duration} at the {_IMAGES_PER_SECOND} images/s of the default model on 2 cores"
