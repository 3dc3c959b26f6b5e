"""What the stages of a command share: cluster, tracking, dataset and run. Imported once a stage has to run."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from mlflow.entities import Dataset

from jobs.cluster.ray_cluster import Resources, cluster
from jobs.data.dataset import ShardedDataset
from jobs.data.manifest import Manifest
from jobs.errors import CorruptedError, UserError
from jobs.storage import open_storage
from jobs.storage.lease import Lease
from jobs.tracking.client import PARENT_RUN, Tracker
from jobs.tracking.models import RunProvenance
from jobs.tracking.registry import Version, resolve
from jobs.tracking.uploader import UploadRecovery
from pipeline.records import RunRecord, TrackedRecord, TrackingLocation, TrainRecord
from pipeline.settings.commands import run_name, run_params, training_command
from pipeline.settings.schema import run_settings
from pipeline.terminal import Reporter
from pipeline.workspace import Run, Workspace
from vlae.models.factory import num_parameters

_MAX_TAG = 8000  # characters, because MLflow refuses longer tags
_NUM_EXAMPLES = 4  # images that are stored with a model as its input example
_UPLOAD_SECONDS = 3.0  # that a command waits, at its end, for the upload of earlier commands' curves


class RunContext:
    """What all trainings of one command share. Ray and MLflow start when they are first used; `stack` closes them."""

    def __init__(self, workspace: Workspace, report: Reporter, stack: ExitStack) -> None:
        self.workspace, self.report, self._stack = workspace, report, stack
        self.owner = uuid.uuid4().hex  # names this command in storages that other workspaces may use

    @cached_property
    def resources(self) -> Resources:
        """Resources of the Ray cluster, which is started or joined."""
        config = self.workspace.config
        # Ray Train within Ray Tune frees the workers of a stopped trial through Ray's dashboard.
        nested = "tune" in config.stage and config.train.num_workers > 1
        return self._stack.enter_context(cluster(config.ray, dashboard=nested))

    @cached_property
    def tracker(self) -> Tracker:
        """The MLflow experiment. The upload of what earlier commands could not send starts with it."""
        tracker = Tracker(self.workspace.config.tracking, self.workspace.path, self.report.line)
        recovery = UploadRecovery(tracker, self._unfinished_checkpoints(tracker.location))

        def finish() -> None:
            for message in recovery.finish(_UPLOAD_SECONDS):
                self.report.line(f"{'':<9}{message}")

        self._stack.callback(finish)
        return tracker

    def _unfinished_checkpoints(self, location: Mapping[str, str]) -> dict[str, str]:
        """Return the checkpoint addresses of unfinished trainings, by the ID of their MLflow run."""
        checkpoints = {}
        for folder in sorted(self.workspace.path.glob("runs/*")):
            try:
                record, trained = Run(folder).read(RunRecord), Run(folder).read(TrainRecord)
            except CorruptedError:
                continue
            if not record or not record.settings or not record.tracking:
                continue
            run_id = record.tracking.run_id
            if record.tracking == TrackingLocation(**location, run_id=run_id) and not (
                trained and trained.run_id == run_id
            ):
                checkpoints[run_id] = Run(folder, record.storage_path).checkpoint_url
        return checkpoints

    @cached_property
    def dataset(self) -> Manifest:
        """Manifest of the shards; UserError if there are none."""
        manifest = self.workspace.dataset()
        if manifest is None:
            raise UserError(f"{self.workspace.access.url}: no shards. Add shard to the stages.")
        return manifest


class Session:
    """One training, or one evaluation of a registered model, with its files and its MLflow run.

    Args:
        context: What it shares with the other trainings of the command.
        workspace: Workspace with the settings of the training.
        search_run: ID of the MLflow run of the search that the training comes from; empty without a search.
        trial: Number of the trial in that search, None for a training that is not a trial.
    """

    def __init__(
        self, context: RunContext, workspace: Workspace, search_run: str = "", trial: int | None = None
    ) -> None:
        self.context, self.workspace, self.config, self.report = context, workspace, workspace.config, context.report
        self._search_run, self._trial = search_run, trial
        self.lease: Lease | None = None  # of the training that this command runs
        if workspace is not context.workspace:
            workspace.source = context.workspace.source  # opened once: a source may have to read all its files

    @property
    def resources(self) -> Resources:
        """Resources of the Ray cluster."""
        return self.context.resources

    @property
    def tracker(self) -> Tracker:
        """The MLflow experiment."""
        return self.context.tracker

    @property
    def dataset(self) -> Manifest:
        """Manifest of the shards."""
        return self.context.dataset

    @cached_property
    def version(self) -> Version:
        """The registered model that `model_uri` refers to now."""
        return resolve(self.tracker, self.config.model_uri)

    @cached_property
    def run(self) -> Run:
        """The training, or the evaluation of a registered model, of these settings on this dataset."""
        if self.config.model_uri:
            self.workspace.model_uri = self.version.uri
        return self.workspace.run(self.dataset)

    @property
    def owner(self) -> str:
        """Name of this command in its `storage_path`; empty if that is the workspace, which has its own locks."""
        storage = self.config.storage_path
        return self.context.owner if storage and Path(storage).resolve() != self.workspace.path.resolve() else ""

    @contextmanager
    def lock_training(self, run: Run) -> Iterator[Lease | None]:
        """Lock a training against other commands, also of other workspaces with the same `storage_path`.

        Args:
            run: The training.

        Yields:
            The ownership of its storage; None if that is the workspace.
        """
        with self.workspace.lock(run.folder.name), ExitStack() as stack:
            if not self.owner:
                yield None
                return

            def show_wait(owner: str) -> None:
                self.report.progress(f"train    waiting for {owner}, which may still train this run ...")

            store = open_storage(run.checkpoint_url)
            yield stack.enter_context(Lease(store, self.owner, str(self.workspace.path), show_wait))

    @property
    def data(self) -> Dataset:
        """The dataset as an MLflow entity."""
        url = self.workspace.access.url
        return Dataset(
            name=self.config.data.name,
            digest=self.dataset.fingerprint,
            source_type="s3" if url.startswith("s3:") else "local",
            source=url,
        )

    def count_parameters(self, image_shape: tuple[int, int, int]) -> int:
        """Return the number of trained parameters of the model for images (height, width, channels).

        Raises:
            UserError: The model cannot be built for such images.
        """
        height, width, channels = image_shape
        try:
            return num_parameters(self.config.model, (channels, height, width))
        except ValueError as error:
            raise UserError(str(error)) from error

    @cached_property
    def provenance(self) -> RunProvenance:
        """The training's MLflow run, created if there is none, and what its models are recorded with."""
        name = run_name(self.config) if self._trial is None else f"trial-{self._trial}-{run_name(self.config)}"
        return self._provenance(self.start_run(name, self._params, training_command(self.config)))

    def resumed_provenance(self) -> RunProvenance | None:
        """Return the provenance of a training that an earlier command started, without a call to MLflow.

        It is also kept as `provenance`. None if this MLflow has no run of the training.
        """
        run_id = self._recorded_run_id(self.run)
        if run_id is None:
            return None
        self.provenance = self._provenance(run_id)
        return self.provenance

    def _provenance(self, run_id: str) -> RunProvenance:
        example = ShardedDataset(self.workspace.access, "train").images(np.arange(_NUM_EXAMPLES))
        return RunProvenance(run_id, run_name(self.config), self._params, self.data, example)

    def _recorded_run_id(self, run: Run) -> str | None:
        """Return the MLflow run of a training, if it is in the experiment of this command."""
        record = run.read(RunRecord)
        if not record or not record.tracking:
            return None
        run_id = record.tracking.run_id
        return run_id if record.tracking == TrackingLocation(**self.tracker.location, run_id=run_id) else None

    @property
    def _params(self) -> dict[str, str]:
        return run_params(self.config, self.count_parameters(self.dataset.image_shape))

    def start_run(self, name: str, params: Mapping[str, str], command: str, *, context: str = "training") -> str:
        """Return the ID of the MLflow run of this training or evaluation, created if there is none.

        Args:
            name: Name of the run in MLflow.
            params: Params of the run.
            command: Command that repeats it.
            context: Use of the dataset: `training` or `evaluation`.
        """
        parent = self._search_run
        if not parent and self.config.init_from:
            parent = self._recorded_run_id(self.workspace.other_run(self.config.init_from)) or ""
        tags = {"command": command, "data_fingerprint": self.dataset.fingerprint}
        if skipped := self.dataset.skipped_names:
            tags["data.skipped"] = skipped[:_MAX_TAG]
        if parent:
            tags[PARENT_RUN] = parent
        record = RunRecord(
            settings={} if self.config.model_uri else run_settings(self.config),
            data_fingerprint=self.dataset.fingerprint,
            storage_path=self.config.storage_path,
            data={name: str(value) for name, value in self.config.data if name in ("root", "on_error")},
        )
        return self.get_or_create_run(
            self.run.folder / RunRecord.FILENAME,
            record,
            lambda key: self.tracker.start_run(name, params, self.data, key=key, tags=tags, context=context),
        )

    def get_or_create_run(self, path: Path, new_record: TrackedRecord, start: Callable[[str], str]) -> str:
        """Return the ID of the MLflow run of a record, created if there is none.

        The record with its key is written before the run is created, so that a kill never causes a second run.

        Args:
            path: File of the record.
            new_record: Written if the file does not exist.
            start: Returns the ID of the MLflow run with a key, and creates that run if there is none.
        """
        record = type(new_record).read(path)
        if record is None:
            record = new_record
            record.write(path)
        run_id = start(record.key)
        tracking = TrackingLocation(**self.tracker.location, run_id=run_id)
        if record.tracking != tracking:
            record.model_copy(update={"tracking": tracking}).write(path)
        return run_id
