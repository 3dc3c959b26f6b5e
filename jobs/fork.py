"""A new training that begins with another one's checkpoint."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.checkpoint import META, differences, read_meta, seal
from jobs.checkpoints import Checkpoints
from jobs.errors import UserError
from jobs.files import write_json


def fork(
    parent: Checkpoints, child: Checkpoints, name: str, settings: Mapping[str, str], data_fingerprint: str, steps: int
) -> int:
    """Publish the parent's newest checkpoint as the child's first; weights, moments, step and curve go along.

    Args:
        parent, child: where the checkpoints are.
        name: of the parent, for messages.
        settings: of the child, as the command spells them.
        data_fingerprint: of the child's dataset.
        steps: of the child's whole training.

    Returns:
        The step.

    Raises:
        UserError: there is no checkpoint, its model is another, or the child's training would be over already.
    """
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        newest = parent.newest(Path(folder))
        if newest is None:
            raise UserError(f"parent={name} has no whole checkpoint: train it first, or leave parent= out")
        meta = read_meta(newest)
        _check(meta, name, settings, steps)
        with child.scratch() as scratch:
            copy = scratch / newest.name
            copy.mkdir()
            for file in meta["files"]:
                shutil.copyfile(newest / file, copy / file)
            # On other data, or with other noise, its score cannot be compared with the child's.
            alike = meta["data_fingerprint"] == data_fingerprint and meta["settings"].get("seed") == settings.get(
                "seed"
            )
            score = meta["score"] if alike else None
            changed = {"settings": dict(settings), "data_fingerprint": data_fingerprint, "score": score}
            write_json(copy / META, seal({**meta, **changed}))
            child.publish(copy)
    return int(meta["step"])


def _check(meta: Mapping[str, Any], name: str, settings: Mapping[str, str], steps: int) -> None:
    old, new = (
        {key: value for key, value in one.items() if key.partition(".")[0] == "model"}
        for one in (meta["settings"], settings)
    )
    if changed := differences(old, new):
        raise UserError(f"parent={name} has another model ({changed}): its weights cannot be taken over")
    if meta["step"] >= steps:
        raise UserError(f"parent={name} has made {meta['step']} steps: set train.steps above that")
