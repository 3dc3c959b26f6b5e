"""What must run: a pure decision from what is there, tested as a table."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pipeline.settings.schema import STAGES, Stage

Action = Literal["run", "resume", "skip"]
StageStatus = Literal["done", "partial", "nothing"]

# The stage whose output a stage reads.
NEEDS: dict[Stage, Stage] = {"tune": "shard", "train": "shard", "evaluate": "train"}


@dataclass(frozen=True)
class Step:
    """What happens to one stage, and why."""

    stage: Stage
    action: Action
    reason: str


def decide(stage: Stage, found: StageStatus, *, forced: Collection[Stage]) -> Step:
    """Decide about one stage.

    Args:
        stage: which.
        found: what an earlier command left of it, for the present settings and the present content of its input.
        forced: stages to run again although they are done.
    """
    if stage in forced:
        return Step(stage, "run", f"force={stage}")
    if found == "partial":
        return Step(stage, "resume", "an earlier command was interrupted")
    if found == "nothing":
        return Step(stage, "run", "not done yet")
    return Step(stage, "skip", "done before, with the same settings and inputs")


def missing_input(stage: Stage, requested: Collection[Stage]) -> str | None:
    """What to say when the input of `stage` is not there; None if a requested stage will make it."""
    needed = NEEDS.get(stage)
    if needed is None or needed in requested:
        return None
    stages = [one for one in STAGES[: STAGES.index(stage) + 1] if one != "tune" or one in (stage, *requested)]
    return (
        f"{stage} needs the output of {needed}, which is not there for these settings and this data: "
        f"run stage={','.join(stages)} (what is done is not done again)"
    )
