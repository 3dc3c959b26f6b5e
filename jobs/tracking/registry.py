"""Model registry: versions with their metrics, the champion (the best version) and the challenger (the next best)."""

import json
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from jobs.cli import format_number
from jobs.config import TrackingConfig
from jobs.errors import CorruptedError, UserError
from jobs.files import remove_folder
from jobs.tracking.client import Tracker, TrackingUnavailableError, accept_existing
from jobs.tracking.database import DATABASE
from jobs.tracking.models import CHECKPOINT_FILES, FILES_TAG, download_files, recorded_hashes
from jobs.tracking.pyfunc import CHECKPOINT, VlaeEncoder

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
_LOGGED_MODEL = "models:/"  # prefix of the source of a version, before the id of a LoggedModel
_MAX_ROUNDS = 10  # of setting aliases while other processes register
_MAX_CONFLICTS = 5  # with other processes before a registration fails
_MAX_PAUSE = 0.5  # seconds after a conflict
# Tags that must be equal, because metrics of other images or factors or of another kind of p(x|z) cannot be compared.
COMPARABLE = ("data_fingerprint", "likelihood", "evaluate.num_images", "evaluate.seed", "data.factors")


@dataclass(frozen=True)
class Registered:
    """A model version, `models:/NAME/VERSION`, after its registration, with the reason for its alias in a few words."""

    uri: str
    alias: Alias | None
    note: str


@dataclass(frozen=True)
class Version:
    """A model version of the registry, `models:/NAME/VERSION`.

    Attributes:
        run_id: MLflow run of the training.
        weights_sha256: Hash (hex) of the weights.
        files: Recorded sha256 (hex) of each file of the model.
    """

    uri: str
    model_id: str
    run_id: str
    weights_sha256: str
    files: Mapping[str, str]


def resolve(tracker: Tracker, uri: str) -> Version:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now.

    Raises:
        UserError: The version does not exist or is not of this pipeline, or MLflow failed.
    """
    match = re.fullmatch(r"models:/([\w.-]+)(?:@([\w-]+)|/(\d+))", uri)
    if match is None:
        raise UserError(f"model_uri={uri}: invalid. Use models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, version = match.groups()
    with tracker.errors():
        client = tracker.client
        try:
            entity = (
                client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
            )
        except MlflowException as error:
            names = ", ".join(f"models:/{model.name}" for model in client.search_registered_models()) or "none"
            raise UserError(f"model_uri={uri}: version not found. Registered models: {names}.") from error
    files = recorded_hashes(entity.tags)
    if "weights_sha256" not in entity.tags or not files.keys() >= set(CHECKPOINT_FILES):
        raise UserError(f"model_uri={uri}: not registered by this pipeline. Choose a version that it registered.")
    model_id = str(entity.source).removeprefix(_LOGGED_MODEL)
    return Version(
        f"models:/{name}/{entity.version}", model_id, str(entity.run_id), entity.tags["weights_sha256"], files
    )


def fetch(tracker: Tracker, version: Version, folder: Path) -> Path:
    """Return the checkpoint of a version, downloaded into `folder`, whose content is replaced.

    Only the files of the checkpoint are downloaded, and nothing reads them before their recorded sha256 is checked.

    Raises:
        CorruptedError: The checkpoint is missing or differs from what was registered.
        TrackingError: MLflow failed.
    """
    remove_folder(folder)
    folder.mkdir(parents=True)
    hashes = download_files(tracker, version.model_id, CHECKPOINT_FILES, folder)
    for name in CHECKPOINT_FILES:
        if hashes.get(name) != version.files[name]:
            fault = "differs from what was registered" if name in hashes else "not found"
            raise CorruptedError(
                f"{version.uri}: {name} {fault}. Repair it by evaluating the training of MLflow run {version.run_id} "
                "again, with force=evaluate."
            )
    return folder / CHECKPOINT


def load_encoder(model_uri: str, workspace: str | Path = "workspace", tracking_uri: str = "") -> VlaeEncoder:
    """Load the encoder of a registered model, after a check of its files against the registry.

    Unlike `mlflow.pyfunc.load_model`, this does not read the model's file `MLmodel`, so no code that it names can run.

    Args:
        model_uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        workspace: Folder of the workspace, whose database is the registry if `tracking_uri` is empty.
        tracking_uri: Address of an MLflow server.

    Returns:
        The encoder, on the CPU.

    Raises:
        CorruptedError: The checkpoint is missing or differs from what was registered.
        UserError: The version does not exist or is not of this pipeline, or MLflow failed.

    Example:
        >>> encoder = load_encoder("models:/digits@champion", "workspace")  # doctest: +SKIP
        >>> codes = encoder.predict(images)  # doctest: +SKIP
    """
    if not tracking_uri and not (Path(workspace) / DATABASE).is_file():
        raise UserError(
            f"workspace={workspace}: {DATABASE} not found. Set workspace to the folder of an earlier command, or "
            "tracking_uri to an MLflow server."
        )
    with _restored_addresses(), tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        tracker = Tracker(TrackingConfig(uri=tracking_uri), Path(workspace).resolve())
        return VlaeEncoder(fetch(tracker, resolve(tracker, model_uri), Path(folder) / "model"))


@contextmanager
def _restored_addresses() -> Iterator[None]:
    """Restore MLflow's global addresses after a `with` block, because `Tracker` sets them."""
    variable = "MLFLOW_REGISTRY_URI"
    tracking, registry, environment = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get(variable)
    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking if is_set else None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(registry if registry != tracking else None)  # type: ignore[arg-type]
        os.environ.pop(variable, None)  # which MLflow leaves
        if environment is not None:
            os.environ[variable] = environment


def register(
    tracker: Tracker,
    run_id: str,
    name: str,
    model_id: str,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    champion_metric: str,
    description: str = "",
) -> Registered:
    """Register a LoggedModel as a version with its metrics, and update champion and challenger.

    A model that is registered already keeps its version and gets the new metrics.

    Args:
        tracker: Client of MLflow.
        run_id: Id of the training's run.
        name: Name of the registered model.
        model_id: Id of the LoggedModel.
        tags: `weights_sha256`, and what must be equal for metrics to be comparable (`COMPARABLE`).
        metrics: Metrics by name, which become tags of the version.
        champion_metric: Name of the metric that decides; higher is better.
        description: Description of the version, in Markdown.

    Returns:
        The version, its alias and the reason.

    Raises:
        TrackingError: MLflow refused a call.
        TrackingUnavailableError: MLflow is unavailable, or other processes register all the time.
    """
    client = tracker.client

    def register_once() -> Registered:
        if not client.search_registered_models(f"name = '{name}'"):
            with accept_existing():
                client.create_registered_model(name)
        version = _get_or_create_version(client, run_id, name, model_id)
        recorded = {FILES_TAG: client.get_logged_model(model_id).tags[FILES_TAG]}
        all_tags = {**tags, **recorded, **{key: f"{value:.8g}" for key, value in metrics.items()}}
        for key, value in all_tags.items():
            client.set_model_version_tag(name, version, key, value)
        if description:
            client.update_model_version(name, version, description)
        alias, note = _update_aliases(client, name, version, all_tags, champion_metric)
        return Registered(f"models:/{name}/{version}", alias, note)

    for _ in range(_MAX_CONFLICTS):
        try:
            with tracker.errors():
                return register_once()
        except TrackingUnavailableError as error:
            if error.status not in (409, 503):  # as a locked SQLite file is reported
                raise
        time.sleep(random.uniform(0, _MAX_PAUSE))
    with tracker.errors():
        return register_once()


def _get_or_create_version(client: MlflowClient, run_id: str, name: str, model_id: str) -> str:
    source = f"{_LOGGED_MODEL}{model_id}"
    versions = [version for version in client.search_model_versions(f"name = '{name}'") if version.source == source]
    version = versions[0] if versions else client.create_model_version(name, source, run_id, model_id=model_id)
    # As `mlflow.register_model` does: the tag makes the page of the LoggedModel show its versions.
    listed = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    entries = [*(entry for entry in listed if entry["name"] != name), {"name": name, "version": version.version}]
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(entries)})
    return str(version.version)


def _update_aliases(
    client: MlflowClient, name: str, version: str, tags: Mapping[str, str], champion_metric: str
) -> tuple[Alias | None, str]:
    """Set the aliases by the tags of all comparable versions alone, so the next registration completes a killed one."""
    # Tags and aliases are read again after the aliases were set, because another process may have registered meanwhile:
    # the last process that sets aliases has then seen the tags of all versions.
    for _ in range(_MAX_ROUNDS):
        aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
        champion = client.get_model_version(name, aliases[CHAMPION]).tags if CHAMPION in aliases else tags
        for key in COMPARABLE:
            if champion.get(key) != tags.get(key):
                return None, f"the champion has another {key}; set evaluate.model_name to register under another name"
        if champion_metric not in tags:
            return None, f"it has no {champion_metric} on these data"
        versions = client.search_model_versions(f"name = '{name}'")
        tags_by_version = {str(entity.version): entity.tags for entity in versions}
        first, *others = ranked(tags_by_version, tags, champion_metric)
        if (aliases.get(CHAMPION), aliases.get(CHALLENGER)) == (first, others[0] if others else None):
            break
        if others:
            client.set_registered_model_alias(name, CHALLENGER, others[0])
        elif CHALLENGER in aliases:
            client.delete_registered_model_alias(name, CHALLENGER)
        client.set_registered_model_alias(name, CHAMPION, first)

    def metric(of: str) -> str:
        return format_number(float(tags_by_version[of][champion_metric]))

    if version == first:
        rival = f"the next best has {metric(others[0])}" if others else "the first version that can be compared"
        return CHAMPION, f"{champion_metric} {metric(version)}, {rival}"
    note = f"{champion_metric} {metric(version)}, the champion has {metric(first)}"
    return (CHALLENGER if version == others[0] else None), note


def ranked(versions: Mapping[str, Mapping[str, str]], tags: Mapping[str, str], champion_metric: str) -> list[str]:
    """Return the versions with metric and `COMPARABLE` tags, the highest metric first and the older of equals first."""
    comparable = [
        version
        for version, own_tags in versions.items()
        if champion_metric in own_tags and all(own_tags.get(key) == tags.get(key) for key in COMPARABLE)
    ]
    return sorted(comparable, key=lambda version: (-float(versions[version][champion_metric]), int(version)))
