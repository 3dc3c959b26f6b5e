"""Model registry: versions with their metrics, the champion (the best version) and the challenger (the next best)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from jobs.checkpoints.format import load_model, weights_sha256
from jobs.cli import format_number
from jobs.errors import CorruptedError, UserError, first_line
from jobs.files import remove_folder
from jobs.tracking.client import Tracker
from jobs.tracking.pyfunc import CHECKPOINT

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
_MAX_MODEL_BYTES = 100_000_000  # seldom exceeded; a server reads a whole file before it answers
_LOGGED_MODEL = "models:/"  # prefix of the source of a version, before the id of a LoggedModel
# Tags that must be equal, because ELBOs of other images or of another kind of p(x|z) cannot be compared.
COMPARABLE = ("data_fingerprint", "likelihood", "evaluate.num_images", "evaluate.seed")


@dataclass(frozen=True)
class Registered:
    """A model version, `models:/NAME/VERSION`, after its registration, with the reason for its alias in a few words."""

    uri: str
    alias: Alias | None
    note: str


@dataclass(frozen=True)
class Version:
    """A model version of the registry, `models:/NAME/VERSION`, with the sha256 (hex) of its weights."""

    uri: str
    model_id: str
    weights_sha256: str


def resolve(tracker: Tracker, uri: str) -> Version:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now.

    Raises:
        UserError: The version does not exist or is not of this pipeline, or MLflow failed.
    """
    match = re.fullmatch(r"models:/([\w.-]+)(?:@([\w-]+)|/(\d+))", uri)
    name, alias, version = match.groups()  # type: ignore[union-attr]  # the settings check the pattern
    with tracker.errors():
        client = tracker.client
        try:
            entity = (
                client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
            )
        except MlflowException as error:
            names = ", ".join(f"models:/{model.name}" for model in client.search_registered_models()) or "none"
            raise UserError(f"model_uri={uri}: version not found. Registered models: {names}.") from error
    if "weights_sha256" not in entity.tags:
        raise UserError(f"model_uri={uri}: not registered by this pipeline. Choose a version that it registered.")
    model_id = str(entity.source).removeprefix(_LOGGED_MODEL)
    return Version(f"models:/{name}/{entity.version}", model_id, entity.tags["weights_sha256"])


def fetch(tracker: Tracker, version: Version, folder: Path) -> Path:
    """Return the verified checkpoint of a version, downloaded into `folder`, whose content is replaced.

    Raises:
        CorruptedError: The checkpoint is missing or differs from what was registered.
        TrackingError: MLflow failed.
    """
    remove_folder(folder)
    folder.mkdir(parents=True)
    fix = "Evaluate its training again to register it anew."
    with tracker.errors(), tracker.transfer(_MAX_MODEL_BYTES):
        try:
            path = Path(mlflow.artifacts.download_artifacts(f"{version.uri}/{CHECKPOINT}", dst_path=str(folder)))
        except (MlflowException, FileNotFoundError) as error:
            raise CorruptedError(f"{version.uri}: checkpoint not found ({first_line(error)}). {fix}") from error
    try:
        weights = weights_sha256(load_model(path))
    except UserError as error:
        raise CorruptedError(f"{version.uri}: damaged ({first_line(error.__cause__ or error)}). {fix}") from error
    if weights != version.weights_sha256:
        raise CorruptedError(f"{version.uri}: the weights differ from those that were registered. {fix}")
    return path


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
        TrackingError: MLflow failed.
    """
    with tracker.errors():
        client = tracker.client
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = _get_or_create_version(client, run_id, name, model_id)
        all_tags = {**tags, **{key: f"{value:.8g}" for key, value in metrics.items()}}
        for key, value in all_tags.items():
            client.set_model_version_tag(name, version, key, value)
        if description:
            client.update_model_version(name, version, description)
        alias, note = _update_aliases(client, name, version, all_tags, champion_metric)
    return Registered(f"models:/{name}/{version}", alias, note)


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
    aliases = client.get_registered_model(name).aliases
    champion = client.get_model_version(name, aliases[CHAMPION]).tags if CHAMPION in aliases else tags
    for key in COMPARABLE:
        if champion.get(key) != tags.get(key):
            return None, f"the champion has another {key}; set evaluate.model_name to register under another name"
    if champion_metric not in tags:
        return None, f"it has no {champion_metric} on these data"
    tags_by_version = {str(entity.version): entity.tags for entity in client.search_model_versions(f"name = '{name}'")}
    first, *others = ranked(tags_by_version, tags, champion_metric)
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
