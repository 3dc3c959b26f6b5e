"""The checkpoints of a training in a local folder or on S3. A checkpoint is either complete or absent."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.checkpoints.format import (
    HISTORY,
    META,
    History,
    Snapshot,
    damage,
    differences,
    parse_history,
    parse_meta,
    read_meta,
    seal,
    verify,
)
from jobs.errors import CorruptedError, UnavailableError, UserError, os_error_reason
from jobs.files import write_json
from jobs.storage import open_storage
from jobs.storage.lease import check_owner

_MAX_FILE_BYTES = 2**35  # that a server may send for one file


class CheckpointManager:
    """The checkpoints below a local folder or s3://bucket/prefix, each in a folder of its own.

    `checkpoint.json` holds the sha256 of the other files. It is published last and removed first, so that a checkpoint
    exists exactly while this file does.

    Args:
        url: Address of the checkpoints.
        owner: Name of the command that must own them whenever something is written; empty for no check.
    """

    def __init__(self, url: str, owner: str = "") -> None:
        self._store, self._owner = open_storage(url), owner

    def _check_owner(self) -> None:
        if self._owner:
            check_owner(self._store, self._owner)

    @staticmethod
    def step_of(path: Path) -> int:
        """Return the step of a folder that `load` or `latest` returned."""
        return int(path.name.removeprefix("step-"))

    def folders(self) -> list[int]:
        """Return the steps of all complete and partial checkpoints, in any order."""
        names = (name.removeprefix("step-") for name in self._store.folders("step-"))
        return [int(name) for name in names if name.isdecimal()]

    def steps(self) -> list[int]:
        """Return the rising steps of all checkpoints, which are complete but not verified."""
        return sorted(step for step in self.folders() if self._store.read(_name(step, META)) is not None)

    def validation_elbos(self) -> dict[int, float | None]:
        """Return the validation ELBO of each checkpoint whose JSON part is intact, by rising step."""
        elbos = {}
        for step in sorted(self.folders()):
            if (content := self._store.read(_name(step, META))) is not None:
                with suppress(CorruptedError):
                    elbos[step] = parse_meta(content, _name(step))["validation_elbo"]
        return elbos

    def save(self, snapshot: Snapshot) -> None:
        """Write and publish the checkpoint of a snapshot.

        Raises:
            UnavailableError: The store does not answer, or other workers removed files meanwhile.
            UserError: The files cannot be written.
        """
        with self.new(snapshot.step) as folder:
            snapshot.write(folder)
        name = _name(snapshot.step)
        content = self._store.read(f"{name}/{META}")
        files = set() if content is None else {f"{name}/{file}" for file in parse_meta(content, name)["files"]}
        if not files or not files.issubset(self._store.names(f"{name}/")):
            # Workers that assumed this one lost have swept its files. No older checkpoint may be removed for it.
            raise UnavailableError(f"{self._store.url}/{name}: removed while it was written. Stop its other trainings.")

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Yield an empty scratch folder, and publish its files as the checkpoint of `step` afterwards."""
        with self._store.scratch() as scratch:
            folder = scratch / _name(step)
            folder.mkdir()
            yield folder
            self.publish(folder)

    def publish(self, folder: Path) -> None:
        """Move the files of a checkpoint from a scratch folder, named by its step, to the store."""
        step = self.step_of(folder)
        self._check_owner()
        self._store.remove(_name(step, META))  # of a damaged checkpoint of this step
        names = sorted(path.name for path in folder.iterdir() if path.name != META)
        for name in (*names, META):
            self._check_owner()
            self._store.publish(folder / name, _name(step, name))

    def latest(self, into: Path) -> Path | None:
        """Return the newest intact checkpoint as `load` does, skipping damaged ones; None if there is no intact one."""
        while True:
            listing = sorted(self.folders()), self.steps()
            for step in reversed(listing[0]):
                with suppress(CorruptedError):
                    return self.load(step, into)
            # A running training may have replaced the listed checkpoints by newer ones.
            if (sorted(self.folders()), self.steps()) == listing:
                return None

    def latest_history(self) -> History:
        """Return the learning curve of the newest checkpoint whose curve is intact, without reading weights."""
        for step in reversed(self.steps()):
            with suppress(CorruptedError):
                meta = parse_meta(self._store.read(_name(step, META)) or b"", _name(step))
                content = self._store.read(_name(step, HISTORY)) or b""
                if hashlib.sha256(content).hexdigest() == meta["files"][HISTORY]:
                    return parse_history(content)
        return History()

    def load(self, step: int, into: Path) -> Path:
        """Return the local folder of a verified checkpoint: its folder in a local store, or a copy of S3 below `into`.

        Raises:
            CorruptedError: The checkpoint is missing or damaged.
            UserError: The copy cannot be written.
        """
        path = self._store.local_path(_name(step))
        address = f"{self._store.url}/{_name(step)}"
        if path is None:
            path = into / _name(step)
            content = self._store.read(_name(step, META)) or b""
            files = parse_meta(content, address)["files"]
            shutil.rmtree(path, ignore_errors=True)
            try:
                path.mkdir(parents=True)
                for name, digest in files.items():
                    with (path / name).open("w+b") as file:
                        try:
                            self._store.fetch(_name(step, name), file, digest, _MAX_FILE_BYTES)
                        except CorruptedError as error:
                            raise CorruptedError(damage(address, name)) from error
                (path / META).write_bytes(content)
            except OSError as error:
                raise UserError(
                    f"{path}: cannot write ({os_error_reason(error)}). Free space or correct permissions.",
                    retry=True,
                ) from error
            except CorruptedError:
                shutil.rmtree(path, ignore_errors=True)  # frees the disk for the copy of another step
                raise
        verify(path, address)
        return path

    def prune(self, keep: int, latest: int) -> None:
        """Remove all checkpoints except the newest `keep` and the best one.

        Steps above `latest`, the last saved, go too: the training has resumed below them because they are damaged.
        """
        self._check_owner()
        elbos = {step: elbo for step, elbo in self.validation_elbos().items() if step <= latest}
        if latest not in elbos:  # other workers removed it meanwhile
            return
        for step in sorted(set(self.folders()) - kept_steps(elbos, keep)):
            self.remove(step)

    def remove(self, step: int) -> None:
        """Remove the complete or partial checkpoint of a step."""
        prefix = _name(step, "")
        self._store.remove(prefix + META)
        for _ in range(2):  # some S3 servers list an empty folder as an object until that is removed
            for name in list(self._store.names(prefix)):
                self._store.remove(name)

    def clear(self) -> None:
        """Remove all checkpoints."""
        for step in self.folders():
            self.remove(step)

    def sweep(self) -> None:
        """Remove what killed writers left: scratch folders and partial checkpoints."""
        self._check_owner()
        self._store.sweep()
        folders = self.folders()  # listed first, so that a checkpoint completed in between stays
        complete = self.steps()
        for step in folders:
            if step not in complete:
                self.remove(step)


def _name(step: int, name: str | None = None) -> str:
    folder = f"step-{step:08d}"
    return folder if name is None else f"{folder}/{name}"


def kept_steps(elbos: Mapping[int, float | None], keep: int) -> set[int]:
    """Return the newest `keep` steps and the one with the highest ELBO; of two with the same ELBO the newer one.

    Example:
        >>> sorted(kept_steps({5: -1.0, 10: -3.0, 15: -2.0}, keep=1))
        [5, 15]
    """
    ranked = [(elbo, step) for step, elbo in elbos.items() if elbo is not None]
    best = {max(ranked)[1]} if ranked else set()
    return {*sorted(elbos)[-keep:], *best}


def warm_start(
    parent: CheckpointManager,
    child: CheckpointManager,
    name: str,
    settings: Mapping[str, str],
    data_fingerprint: str,
    steps: int,
) -> int:
    """Publish the parent's latest checkpoint as the child's first: weights, moments, step and learning curve.

    Args:
        parent: Checkpoints to start from.
        child: Checkpoints of the new training.
        name: Name of the parent, for messages.
        settings: Settings of the child, as the command spells them.
        data_fingerprint: Fingerprint of the child's dataset.
        steps: Steps of the child's whole training.

    Returns:
        Step of the checkpoint.

    Raises:
        UserError: There is no checkpoint, its model is another, or the child's training would be finished already.
    """
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        latest = parent.latest(Path(folder))
        if latest is None:
            raise UserError(f"init_from={name}: has no intact checkpoint. Train that run first, or omit init_from=.")
        meta = read_meta(latest)
        old, new = (
            {key: value for key, value in each.items() if key.partition(".")[0] == "model"}
            for each in (meta["settings"], settings)
        )
        if changed := differences(old, new):
            raise UserError(f"init_from={name}: has another model ({changed}). Set the model's settings to the run's.")
        if meta["step"] >= steps:
            raise UserError(f"init_from={name}: has made {meta['step']} steps. Set train.steps above that.")
        # The ELBO on other data, or with other noise, cannot be compared with the child's.
        comparable = (meta["data_fingerprint"], meta["settings"].get("seed")) == (
            data_fingerprint,
            settings.get("seed"),
        )
        changes = {
            "settings": dict(settings),
            "data_fingerprint": data_fingerprint,
            "validation_elbo": meta["validation_elbo"] if comparable else None,
        }
        with child.new(meta["step"]) as copy:
            for file in meta["files"]:
                shutil.copyfile(latest / file, copy / file)
            write_json(copy / META, seal({**meta, **changes}))
    return int(meta["step"])
