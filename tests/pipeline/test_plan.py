"""The plan, as a table."""

import pytest

from pipeline.plan import decide, missing_input


@pytest.mark.parametrize(
    ("stage", "found", "forced", "action"),
    [
        ("shard", "nothing", [], "run"),
        ("shard", "partial", [], "resume"),
        ("shard", "done", [], "skip"),
        ("shard", "done", ["shard"], "run"),
        ("train", "nothing", ["shard"], "run"),
        ("train", "partial", [], "resume"),
        ("train", "partial", ["train"], "run"),
        ("train", "done", [], "skip"),
        ("train", "done", ["evaluate"], "skip"),
        ("evaluate", "done", [], "skip"),
        ("evaluate", "nothing", [], "run"),
        ("evaluate", "done", ["evaluate"], "run"),
    ],
)
def test_decisions(stage: str, found: str, forced: list[str], action: str) -> None:
    step = decide(stage, found, forced=forced)
    assert step.action == action
    assert step.reason


def test_a_stage_without_its_input_names_the_stage_that_makes_it() -> None:
    assert "stage=shard,train,evaluate" in (missing_input("evaluate", ["evaluate"]) or "")
    assert missing_input("evaluate", ["train", "evaluate"]) is None
    assert missing_input("shard", ["shard"]) is None
