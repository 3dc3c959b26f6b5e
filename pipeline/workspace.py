"""Paths, locks and records of a workspace. Imports neither torch nor Ray."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jobs.data.manifest import MANIFEST, Manifest, read_manifest
from jobs.data.shard_reader import DataAccess
from jobs.data.sources.base import Source
from jobs.errors import CorruptedError, MissingSourceError, UserError, os_error_reason
from jobs.files import file_lock
from jobs.storage import open_storage
from jobs.storage.base import Storage
from pipeline.records import Record, RunRecord, TrainRecord
from pipeline.settings.schema import Config, defining_settings, format_value, run_settings

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Run:
    """Files of one training, or of the evaluation of a registered model.

    Attributes:
        folder: Folder in the workspace, named after everything that determines the run.
        storage_path: Folder or S3 address that holds the checkpoints; empty: they are in `folder`.
    """

    folder: Path
    storage_path: str = ""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, or of copies of them where `storage_path` is on S3."""
        return self.folder / "checkpoints"

    @property
    def checkpoint_url(self) -> str:
        """Address of the checkpoints."""
        return (
            f"{self.storage_path}/runs/{self.folder.name}/checkpoints" if self.storage_path else str(self.checkpoints)
        )

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(True for _ in open_storage(self.checkpoint_url).folders("step-"))

    @property
    def scratch(self) -> Path:
        """Folder of Ray's own files, which have no use after the training."""
        return self.folder / "ray"

    @property
    def log(self) -> Path:
        """File of the lines that commands have printed about this run."""
        return self.folder / "log.txt"

    @property
    def figures(self) -> Path:
        """Folder of the figures of the last evaluation."""
        return self.folder / "figures"

    @property
    def explorer(self) -> Path:
        """HTML page of the last evaluation."""
        return self.folder / "explorer.html"

    def checkpoint(self, name: str) -> Path:
        """Return the local folder of a checkpoint; for one on S3 the folder of its copy, which may not exist."""
        return open_storage(self.checkpoint_url).local_path(name) or self.checkpoints / name

    def read(self, record: type[R]) -> R | None:
        """Return the record of this type of the run, or None if it was never written.

        Raises:
            CorruptedError: The file is not such a record.
        """
        return record.read(self.folder / record.FILENAME)

    def write(self, record: Record) -> None:
        """Write a record of this run, in place of the record of the same type."""
        record.write(self.folder / record.FILENAME)


def siblings(run: Run, settings: Mapping[str, str], data_fingerprint: str) -> list[Path]:
    """Return the last checkpoints, by seed, of finished trainings on the same shards that differ in the seed alone."""
    checkpoints = {}
    for folder in run.folder.parent.iterdir():
        other = Run(folder, run.storage_path)
        try:
            record, trained = other.read(RunRecord), other.read(TrainRecord)
        except CorruptedError:
            continue
        if folder == run.folder or not record or not trained or record.data_fingerprint != data_fingerprint:
            continue
        if {**record.settings, "seed": ""} == {**settings, "seed": ""}:
            checkpoint = other.checkpoint(trained.checkpoint)
            if checkpoint.is_dir():  # it is missing if the training had another storage_path
                checkpoints[int(record.settings["seed"])] = checkpoint
    return [checkpoints[seed] for seed in sorted(checkpoints)]


def fingerprint(*values: Any) -> str:
    """Return a hash of JSON values, twelve hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class Workspace:
    """The folder that holds the shards, runs, database and artifacts of a configuration.

    Attributes:
        config: Settings of a command or a trial.
        path: Folder of the workspace.
        model_uri: Setting `model_uri`; the session replaces an alias by the version that it refers to.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.workspace
        self.model_uri = config.model_uri

    def create(self) -> None:
        """Create the folder; UserError if it is not writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise UserError(
                f"workspace={self.path}: cannot write ({os_error_reason(error)}). Set workspace= to a writable folder."
            ) from error

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Lock a dataset or a run against other commands of this workspace for the time of a `with` block.

        Args:
            name: Folder name of the dataset or run.
            shared: Admit other shared locks, as readers take them.

        Yields:
            Nothing.

        Raises:
            UserError: Another command holds the lock.
        """
        path = self.path / "locks" / name
        path.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(path, shared=shared, wait=False))
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another command uses {name}. Wait until it ends, or set another workspace=."
                ) from None
            yield

    @property
    def data_name(self) -> str:
        """Name of the dataset that the data settings define, for any content of the source."""
        data = self.config.data
        return f"{data.name}-{fingerprint(data.name, defining_settings(data))}"

    @property
    def data_url(self) -> str | None:
        """Address of the shards for these settings and the present content of the source.

        Without the source's files: the address of the shards that exist for these settings, None if there are none.

        Raises:
            UserError: The source is invalid, or it is missing and shards of several contents of it exist.
        """
        folder = f"{self.config.storage_path or self.path}/shards"
        if self.source is not None:
            return f"{folder}/{self.data_name}-{fingerprint(self.source.fingerprint)[:8]}"
        urls = [f"{folder}/{name}" for name in open_storage(folder).folders(f"{self.data_name}-")]
        complete = [url for url in urls if open_storage(url).read(MANIFEST) is not None]
        if len(complete) > 1:
            raise UserError(
                f"{folder}: {len(complete)} versions of {self.data_name} exist, and the source that identifies the "
                "right one is missing. Restore the source, or remove the other versions."
            )
        return complete[0] if complete else None

    @property
    def data_storage(self) -> Storage | None:
        """Storage at `data_url`."""
        return open_storage(self.data_url) if self.data_url else None

    @property
    def access(self) -> DataAccess:
        """How jobs read the shards; UserError if there are none."""
        data = self.config.data
        if self.data_url is None:
            raise UserError(
                f"{self.config.storage_path or self.path}: no shards of data={data.name}. Run stage=shard first."
            )
        return DataAccess(self.data_url, data.cache_dir or self.path / "cache", data.cache_bytes, data.factors)

    @property
    def _own_folders(self) -> list[Path]:
        """Folders that commands write, which are no input, although they may lie in the folder of the data."""
        names = ("cache", "downloads", "locks", "mlartifacts", "runs", "searches", "shards")
        parents = [self.path]
        if self.config.storage_path and not self.config.storage_path.startswith("s3:"):
            parents.append(Path(self.config.storage_path))
        # The parts, too, because the workspace may be the folder of the data itself.
        folders = [*parents, *(parent / name for parent in parents for name in names)]
        return [*folders, self.config.data.cache_dir] if self.config.data.cache_dir else folders

    def open_source(self, *, fetch: bool) -> Source:
        """Return the source of the images. With `fetch`, missing files are downloaded where the publisher permits.

        Raises:
            MissingSourceError: Files are missing. The message names them and where they belong.
            UserError: A file cannot be read or is invalid.
        """
        source = self.config.data.locate(self.path / "downloads", fetch=fetch).open().excluding(self._own_folders)
        source.fingerprint  # noqa: B018  (some sources look for their files only when these are needed)
        return source

    @cached_property
    def source(self) -> Source | None:
        """Source with its present content, or None if its files are missing; UserError if they are invalid."""
        try:
            return self.open_source(fetch=False)
        except MissingSourceError:
            return None

    def dataset(self) -> Manifest | None:
        """Return the manifest of the shards, or None if they are not complete."""
        store = self.data_storage
        return read_manifest(store) if store else None

    def run(self, dataset: Manifest) -> Run:
        """Return the training of these settings, or the evaluation of a registered model. Its folder may not exist.

        Raises:
            UserError: `resume` names a run that was trained on other data.
        """
        if uri := self.model_uri:
            name = re.sub(r"[@/]", "-", uri.removeprefix("models:/"))
            key = fingerprint(uri, self.config.tracking.uri, dataset.fingerprint)
            return Run(self.path / "runs" / f"{name}-on-{self.config.data.name}-{key}")
        name = self.training_name(dataset.fingerprint)
        if self.config.resume not in ("", name):
            raise UserError(
                f"resume={self.config.resume}: the run was trained on other data than the present "
                f"data={self.config.data.name}. Restore the source or the shards."
            )
        return self.other_run(name)

    def training_name(self, data_fingerprint: str) -> str:
        """Return the folder name of the training of these settings, `MODEL-DATA-HASH`."""
        key = fingerprint(run_settings(self.config), data_fingerprint)
        return f"{self.config.model.name}-{self.config.data.name}-{key}"

    def other_run(self, name: str) -> Run:
        """Return a training by the name of its folder in `runs/`, which may not exist."""
        return Run(self.path / "runs" / name, self.config.storage_path)

    def evaluate_key(self) -> str:
        """Return a hash of the evaluation's settings, of the factors that it uses, and of the tracking location."""
        tracking = {name: format_value(getattr(self.config.tracking, name)) for name in ("uri", "experiment")}
        return fingerprint(defining_settings(self.config.evaluate), self.config.data.factors, tracking)
