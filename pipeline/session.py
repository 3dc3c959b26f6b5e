"""What the stages of one command share: settings, cluster, tracking, dataset. Imported once something has to run."""

import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Dataset

from jobs.cluster.ray_cluster import Resources, cluster
from jobs.data.dataset import ShardedDataset
from jobs.data.manifest import Manifest
from jobs.errors import UserError
from jobs.files import read_json, write_json
from jobs.tracking.client import PARENT_RUN, Tracker
from jobs.tracking.models import RunProvenance
from jobs.tracking.registry import Version, resolve
from jobs.tracking.uploader import UploadRecovery
from pipeline.settings.commands import command_line, params, run_name
from pipeline.settings.schema import run_settings
from pipeline.terminal import Reporter
from pipeline.workspace import Run, Workspace
from vlae.models.factory import num_parameters

_EXAMPLES = 4  # images that are kept with a model to try it on
_LEFT_SECONDS = 3.0  # that a command waits, at its end, for the curves of earlier ones


class Session:
    """Ray and MLflow start when the first stage needs them, and once.

    Args:
        workspace: of the command's settings.
        report: where progress goes.
        stack: closes what the session opened.
        search_run: MLflow's run of the search that this training comes of, if it does.
        trial: its number in that search, if it is one of its trials.
    """

    def __init__(
        self, workspace: Workspace, report: Reporter, stack: ExitStack, search_run: str = "", trial: int | None = None
    ) -> None:
        self.workspace, self.config, self.report, self._stack = workspace, workspace.config, report, stack
        self._search_run, self._trial = search_run, trial

    def of(self, workspace: Workspace, search_run: str = "", trial: int | None = None) -> "Session":
        """A session of other settings of model and training, on the same cluster, dataset and MLflow."""
        other = Session(workspace, self.report, self._stack, search_run, trial)
        other.workspace.source = self.workspace.source
        other.tracker, other.dataset = self.tracker, self.dataset
        if "resources" in vars(self):  # Ray runs
            other.resources = self.resources
        return other

    @cached_property
    def resources(self) -> Resources:
        """Of the Ray cluster."""
        # Ray Train within Ray Tune frees the workers of a trial that was stopped through Ray's dashboard.
        nested = "tune" in self.config.stage and self.config.train.num_workers > 1
        return self._stack.enter_context(cluster(self.config.ray, dashboard=nested))

    @property
    def spools(self) -> Path:
        """Folder of what MLflow is still to get."""
        return self.workspace.path / "spool"

    @cached_property
    def tracker(self) -> Tracker:
        """The MLflow experiment. What earlier commands could not send to it is on its way from now on."""
        tracker = Tracker(self.config.tracking, self.workspace.path)
        leftovers = UploadRecovery(tracker, self.spools)

        def finish() -> None:
            for news in leftovers.finish(_LEFT_SECONDS):
                self.report.line(f"{'':<9}{news}")

        self._stack.callback(finish)
        return tracker

    @cached_property
    def dataset(self) -> Manifest:
        """The shards.

        Raises:
            UserError: there are none.
        """
        manifest = self.workspace.dataset()
        if manifest is None:
            raise UserError(f"no shards in {self.workspace.access.url}: add shard to the stages")
        return manifest

    @cached_property
    def version(self) -> Version:
        """The registered model that `model_uri` means now."""
        return resolve(self.tracker, self.config.model_uri)

    @cached_property
    def run(self) -> Run:
        """The training, or the evaluation of a registered model, of these settings on this dataset."""
        if self.config.model_uri:
            self.workspace.model_uri = self.version.uri
        return self.workspace.run(self.dataset)

    @property
    def data(self) -> Dataset:
        """The dataset as MLflow knows it."""
        return Dataset(
            name=self.config.data.name,
            digest=self.dataset.fingerprint,
            source_type="s3" if self.workspace.access.url.startswith("s3:") else "local",
            source=self.workspace.access.url,
        )

    def count_parameters(self, image_shape: tuple[int, int, int]) -> int:
        """Trained parameters of the model for images (height, width, channels).

        Raises:
            UserError: it cannot be built for them.
        """
        height, width, channels = image_shape
        try:
            return num_parameters(self.config.model, (channels, height, width))
        except ValueError as error:
            raise UserError(str(error)) from error

    @cached_property
    def origin(self) -> RunProvenance:
        """The training's MLflow run, and what its models are recorded with."""
        name = run_name(self.config) if self._trial is None else f"trial-{self._trial}-{run_name(self.config)}"
        return self._origin(self.start_run(name, self._params, command_line(self.config)))

    def resumed_origin(self) -> RunProvenance | None:
        """The origin of a training that an earlier command has begun, while MLflow is away; None if there is none."""
        known = (self.run.read("run") or {}).get("tracking", {})
        if "run_id" not in known or known != {**self.tracker.home, "run_id": known["run_id"]}:
            return None
        self.origin = self._origin(known["run_id"])
        return self.origin

    def _origin(self, run_id: str) -> RunProvenance:
        example = ShardedDataset(self.workspace.access, "train").images(np.arange(_EXAMPLES))
        return RunProvenance(run_id, run_name(self.config), self._params, self.data, example)

    def _parent_tag(self) -> dict[str, str]:
        """What MLflow shows a run below its parent by, if both are there."""
        if self._search_run:
            return {PARENT_RUN: self._search_run}
        if not self.config.init_from:
            return {}
        record = self.workspace.other_run(self.config.init_from).read("run") or {}
        known = record.get("tracking", {})
        here = known == {**self.tracker.home, "run_id": known.get("run_id")}
        return {PARENT_RUN: known["run_id"]} if here else {}

    @property
    def _params(self) -> dict[str, str]:
        return params(self.config, self.count_parameters(self.dataset.image_shape))

    def start_run(self, name: str, found: Mapping[str, str], command: str, *, context: str = "training") -> str:
        """The MLflow run of `run`."""
        fresh = {
            "settings": {} if self.config.model_uri else run_settings(self.config),
            "data_fingerprint": self.dataset.fingerprint,
            "storage_path": self.config.storage_path,
        }
        tags = {"command": command, "data_fingerprint": self.dataset.fingerprint, **self._parent_tag()}
        return self.remembered(
            self.run.folder / "run.json",
            fresh,
            lambda key: self.tracker.start_run(name, found, self.data, key=key, tags=tags, context=context),
        )

    def remembered(self, path: Path, fresh: Mapping[str, Any], start: Callable[[str], str]) -> str:
        """The MLflow run of the record at `path`; the key that finds it is written first: no kill leaves a second run.

        Args:
            path: of the record, made with `fresh` if there is none.
            fresh: what a new record holds besides.
            start: from the key to the run's id.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        record = read_json(path)
        if record is None:
            record = {"key": uuid.uuid4().hex, **fresh}
            write_json(path, record)
        run_id = start(record["key"])
        tracking = {**self.tracker.home, "run_id": run_id}
        if record.get("tracking") != tracking:
            write_json(path, {**record, "tracking": tracking})
        return run_id
