"""Where everything lies in the workspace. Light: no torch, no Ray."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.data.manifest import MANIFEST, Manifest, read_manifest
from jobs.data.shard_reader import DataAccess
from jobs.data.sources.base import Source
from jobs.data.sources.build import open_source
from jobs.errors import UserError
from jobs.files import read_json
from jobs.storage import open_store
from jobs.storage.base import Store
from pipeline.settings.schema import Config, identity, run_settings, spell


@dataclass(frozen=True)
class Run:
    """One training in the workspace, named by all that determines it."""

    folder: Path
    store: str = ""  # where the checkpoints are kept, if not in the folder: an address

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; where they are kept in a store, of copies of them once training has ended."""
        return self.folder / "checkpoints"

    @property
    def checkpoint_place(self) -> str:
        """Address of the checkpoints."""
        return f"{self.store}/runs/{self.folder.name}/checkpoints" if self.store else str(self.checkpoints)

    def checkpoint(self, name: str) -> Path:
        """A checkpoint of a finished training by the name of its folder: where it lies, or the copy of one on S3."""
        return open_store(self.checkpoint_place).local_path(name) or self.checkpoints / name

    @property
    def scratch(self) -> Path:
        """Ray's own notes; of no use once the training has ended."""
        return self.folder / "ray"

    @property
    def figures(self) -> Path:
        """Pictures of the last evaluation."""
        return self.folder / "figures"

    @property
    def explorer(self) -> Path:
        """The page to explore the rungs with, of the last evaluation."""
        return self.folder / "explorer.html"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return any(True for _ in open_store(self.checkpoint_place).folders("step-"))

    def read(self, name: str) -> dict[str, Any] | None:
        """A record (`run`, `train`, `evaluate`) that was written whole, or None."""
        return read_json(self.folder / f"{name}.json")


def siblings(run: Run, settings: Mapping[str, str], data_fingerprint: str) -> list[Path]:
    """Checkpoints of finished trainings beside `run` that differ from it in the seed alone, in order of their seeds.

    Args:
        run: one training.
        settings: that define it, in command-line spelling.
        data_fingerprint: of the dataset that it was trained on.
    """
    found = {}
    for folder in run.folder.parent.iterdir():
        other = Run(folder, run.store)
        record, trained = other.read("run"), other.read("train")
        if folder == run.folder or not record or not trained or record.get("data_fingerprint") != data_fingerprint:
            continue
        if {**record["settings"], "seed": ""} == {**settings, "seed": ""}:
            checkpoint = other.checkpoint(trained["checkpoint"])
            if checkpoint.is_dir():  # else it was trained with another store
                found[int(record["settings"]["seed"])] = checkpoint
    return [found[seed] for seed in sorted(found)]


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change with any part."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


class Workspace:
    """The folder of one configuration's shards, runs, database and artifacts."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.workspace
        self.model_uri = config.model_uri  # with the version, once an alias has been looked up

    def make(self) -> None:
        """Create the folder and see that it can be written.

        Raises:
            UserError: it cannot.
        """
        probe = self.path / f".write-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"workspace={self.path} cannot be written ({error.strerror}): set workspace=DIR to a folder that can"
            ) from error

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Keep other commands of this workspace out of a dataset or a run for the time of a `with` block.

        A shared lock lets in those that only read it too. The lock is the kernel's: it ends with the process,
        however that ends.

        Raises:
            UserError: another command is at work there.
        """
        path = self.path / "locks" / name
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another command is at work on {name} in {self.path}: wait for it, or use another workspace"
                ) from None
            yield

    @property
    def data_name(self) -> str:
        """Of the shards of the data settings, whatever the source holds."""
        data = self.config.data
        return f"{data.name}-{fingerprint(data.name, identity(data))}"

    @property
    def data_url(self) -> str | None:
        """Place of the shards of these settings and of the source as it is now.

        Where the source's files are not at hand, the place of the shards that were made of them; None if there are
        none.

        Raises:
            UserError: there are several such places.
        """
        place = f"{self.config.storage_path or self.path}/shards"
        if self.source is not None:
            return f"{place}/{self.data_name}-{fingerprint(self.source.fingerprint)[:8]}"
        folders = (f"{place}/{name}" for name in open_store(place).folders(f"{self.data_name}-"))
        made = [url for url in folders if open_store(url).read(MANIFEST) is not None]
        if len(made) > 1:
            raise UserError(
                f"{place} holds {len(made)} versions of {self.data_name}, and the source that would tell which is "
                "meant is not here: put it back, or remove the versions you do not want"
            )
        return made[0] if made else None

    @property
    def data_store(self) -> Store | None:
        """The store at `data_url`."""
        return open_store(self.data_url) if self.data_url else None

    @property
    def access(self) -> DataAccess:
        """How jobs read the shards.

        Raises:
            UserError: there are none.
        """
        if self.data_url is None:
            raise UserError(
                f"no shards of data={self.config.data.name} in {self.config.storage_path or self.path}: run stage=shard"
            )
        data = self.config.data
        return DataAccess(self.data_url, data.cache_dir or self.path / "cache", data.cache_bytes)

    @cached_property
    def source(self) -> Source | None:
        """The source as it is now, or None if its files are not at hand."""
        try:
            source = open_source(self.config.data, self.path / "downloads", fetch=False)
            source.fingerprint  # noqa: B018  (files are looked for here)
        except UserError:
            return None
        return source

    def require_source(self) -> None:
        """See that the source's files are here, or that they may be downloaded.

        Raises:
            UserError: they are not; the message says what goes where.
        """
        if self.source is None and not getattr(self.config.data, "download", False):
            open_source(self.config.data, self.path / "downloads", fetch=False).fingerprint  # noqa: B018

    def fetch_source(self) -> Source:
        """The source, its files downloaded into the workspace if need be and if their publisher allows.

        Raises:
            UserError: files are missing.
        """
        if self.source is None:
            self.source = open_source(self.config.data, self.path / "downloads", fetch=True)
        return self.source

    def dataset(self) -> Manifest | None:
        """The shards that are there; a source that is gone is not held against them."""
        store = self.data_store
        return read_manifest(store) if store else None

    def run(self, dataset: Manifest) -> Run:
        """The training of these settings on this dataset, or the evaluation of a registered model on it."""
        if uri := self.model_uri:
            name = re.sub(r"[@/]", "-", uri.removeprefix("models:/"))
            key = fingerprint(uri, self.config.tracking.uri, dataset.fingerprint)
            return Run(self.path / "runs" / f"{name}-on-{self.config.data.name}-{key}")
        name = self.training_name(dataset.fingerprint)
        if self.config.resume not in ("", name):
            raise UserError(
                f"resume={self.config.resume} was trained on other data than data={self.config.data.name} is now: "
                "put the source or the shards back"
            )
        return self.other_run(name)

    def training_name(self, data_fingerprint: str) -> str:
        """Of the folder of the training of these settings on that dataset."""
        key = fingerprint(run_settings(self.config), data_fingerprint)
        return f"{self.config.model.name}-{self.config.data.name}-{key}"

    def other_run(self, name: str) -> Run:
        """A training by the name of its folder."""
        return Run(self.path / "runs" / name, self.config.storage_path)

    def evaluate_key(self) -> str:
        """Changes with the settings of the evaluation and the place of tracking."""
        tracking = {name: spell(getattr(self.config.tracking, name)) for name in ("uri", "experiment")}
        return fingerprint(identity(self.config.evaluate), tracking)
