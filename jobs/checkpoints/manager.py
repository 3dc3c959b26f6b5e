"""Where a training's checkpoints are: a local folder or S3. Each appears whole or not at all."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from jobs.checkpoints.format import META, damaged, differences, parse_meta, read_meta, seal, verify
from jobs.errors import CorruptedError, UserError
from jobs.files import write_json
from jobs.storage import open_store


class Checkpoints:
    """The checkpoints below one address, each in a folder of its own.

    `checkpoint.json`, which has the sha256 of the other files, comes last and goes first: without it there is none.

    Args:
        url: a folder, or s3://bucket/prefix.
    """

    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    @staticmethod
    def step_of(path: Path) -> int:
        """The step of a checkpoint, from its folder's name."""
        return int(path.name.removeprefix("step-"))

    def steps(self) -> list[int]:
        """Steps with a checkpoint, rising; one may still turn out to be damaged."""
        return sorted(step for step in self.folders() if self._store.read(self._name(step, META)) is not None)

    def scores(self) -> dict[int, float | None]:
        """Validation score of each checkpoint by its step; damaged ones are left out."""
        found = {}
        for step in self.steps():
            try:
                content = self._store.read(self._name(step, META)) or b""
                found[step] = parse_meta(content, self._name(step))["score"]
            except CorruptedError:
                continue
        return found

    def publish(self, folder: Path) -> None:
        """Move the files of a whole checkpoint from the scratch folder `folder`, named by its step, to their place."""
        step = self.step_of(folder)
        self._store.remove(self._name(step, META))  # a damaged one of this step
        names = sorted(path.name for path in folder.iterdir() if path.name != META)
        for name in (*names, META):
            self._store.publish(folder / name, self._name(step, name))

    def complete(self, step: int) -> bool:
        """Whether all files of a checkpoint are there."""
        content = self._store.read(self._name(step, META))
        if content is None:
            return False
        there = set(self._store.names(self._name(step, "")))
        return all(self._name(step, name) in there for name in parse_meta(content, self._name(step))["files"])

    def scratch(self) -> AbstractContextManager[Path]:
        """A local folder to write in, for the time of a `with` block."""
        return self._store.scratch()

    def drop(self, step: int) -> None:
        """Remove the checkpoint of a step; a part of one too."""
        prefix = self._name(step, "")
        self._store.remove(prefix + META)
        for _ in range(2):  # some servers of S3 keep an empty folder, and show it as an object, until that is removed
            for name in list(self._store.names(prefix)):
                self._store.remove(name)

    def clear(self) -> None:
        """Remove all checkpoints."""
        for step in self.folders():
            self.drop(step)

    def sweep(self) -> None:
        """Remove what killed writers left: scratch folders, and checkpoints without their last file."""
        self._store.sweep()
        folders = self.folders()  # before the look at what is whole: one that is finished in between stays
        whole = self.steps()
        for step in folders:
            if step not in whole:
                self.drop(step)

    def newest(self, folder: Path) -> Path | None:
        """The newest whole checkpoint, as `fetch` gives it; damaged ones are passed over."""
        while True:
            there = sorted(self.folders()), self.steps()
            for step in reversed(there[0]):
                try:
                    return self.fetch(step, folder)
                except CorruptedError:
                    continue
            if (sorted(self.folders()), self.steps()) == there:  # else newer ones have come in the place of those seen
                return None

    def fetch(self, step: int, folder: Path) -> Path:
        """A checkpoint as a local folder, verified: where it lies, or copied below `folder` if it is on S3.

        Raises:
            DamagedError: it is missing, or not as it was written.
        """
        here = self._store.local_path(self._name(step))
        path = here or folder / self._name(step)
        address = f"{self._store.url}/{self._name(step)}"
        if here is None:
            self._copy(step, path, address)
        verify(path, address)
        return path

    def _copy(self, step: int, path: Path, address: str) -> None:
        content = self._store.read(self._name(step, META)) or b""
        meta = parse_meta(content, address)
        shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir(parents=True)
            for name, digest in meta["files"].items():
                with (path / name).open("w+b") as file:
                    self._fetch_file(step, name, file, digest)
            (path / META).write_bytes(content)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; mend that and run again") from error
        except CorruptedError:
            shutil.rmtree(path, ignore_errors=True)  # room for the copy of another
            raise

    def _fetch_file(self, step: int, name: str, file: BinaryIO, digest: str) -> None:
        try:
            self._store.fetch(self._name(step, name), file, digest)
        except CorruptedError as error:
            raise damaged(f"{self._store.url}/{self._name(step)}", name) from error

    def folders(self) -> list[int]:
        """Steps of which there is anything, a checkpoint or a part of one."""
        names = (name.removeprefix("step-") for name in self._store.folders("step-"))
        return [int(name) for name in names if name.isdecimal()]

    @staticmethod
    def _name(step: int, name: str | None = None) -> str:
        folder = f"step-{step:08d}"
        return folder if name is None else f"{folder}/{name}"


def warm_start(
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
            raise UserError(f"init_from={name} has no whole checkpoint: train it first, or leave init_from= out")
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
        raise UserError(f"init_from={name} has another model ({changed}): its weights cannot be taken over")
    if meta["step"] >= steps:
        raise UserError(f"init_from={name} has made {meta['step']} steps: set train.steps above that")
