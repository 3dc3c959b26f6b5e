"""The model registry: versions with their scores, the champion, and the challenger that comes next."""

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

from jobs.errors import UserError
from jobs.files import remove_folder
from jobs.serving import CHECKPOINT
from jobs.tracking import Tracker

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
_LOGGED = "models:/"  # where a version comes from: this and the id of a LoggedModel
# Tags of a version. ELBOs of other data, or under another kind of p(x|z), cannot be held against each other.
COMPARABLE = ("data_fingerprint", "likelihood")


@dataclass(frozen=True)
class Registered:
    """A model version and what it now is."""

    uri: str  # models:/NAME/VERSION
    alias: Alias | None
    note: str  # why, in a few words


@dataclass(frozen=True)
class Fetched:
    """A registered model's checkpoint on this machine."""

    uri: str  # models:/NAME/VERSION
    model_id: str  # of the LoggedModel
    checkpoint: Path


def fetch(tracker: Tracker, uri: str, folder: Path) -> Fetched:
    """Download the checkpoint of a model version into `folder`, in place of what is there.

    Args:
        tracker: where the registry is.
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        folder: for the checkpoint.

    Raises:
        UserError: there is no such version, it was not made by this pipeline, or MLflow does not answer.
    """
    name, alias, number = re.fullmatch(r"models:/([\w.-]+)(?:@([\w-]+)|/(\d+))", uri).groups()  # type: ignore[union-attr]
    with tracker.errors():
        client = tracker.client
        try:
            version = (
                client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
            )
        except MlflowException as error:
            known = ", ".join(f"models:/{found.name}" for found in client.search_registered_models()) or "none"
            raise UserError(f"model_uri={uri}: the registry has no such version; its models: {known}") from error
        model_id = str(version.source).removeprefix(_LOGGED)
        remove_folder(folder)
        folder.mkdir(parents=True)
        found = f"models:/{name}/{version.version}"
        try:
            place = mlflow.artifacts.download_artifacts(f"{found}/{CHECKPOINT}", dst_path=str(folder))
        except MlflowException as error:
            raise UserError(f"model_uri={uri} holds no checkpoint of this pipeline ({error})") from error
    return Fetched(found, model_id, Path(place))


def register(
    tracker: Tracker,
    run_id: str,
    name: str,
    model_id: str,
    *,
    tags: Mapping[str, str],
    scores: Mapping[str, float],
    select_by: str,
    description: str = "",
) -> Registered:
    """Make a LoggedModel a version with its scores; the best one is the champion, the next best the challenger.

    A model that is registered already keeps its version and gets the new scores.

    Args:
        tracker: where.
        run_id: the training.
        name: in the registry.
        model_id: of the LoggedModel.
        tags: `weights_sha256`, and what must be equal for scores to be comparable (`COMPARABLE`).
        scores: by name, to be tags of the version.
        select_by: which of them decides.
        description: of the version, in Markdown.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracker.errors():
        client = tracker.client
        aliases = _aliases(client, name)
        version = _version(client, run_id, name, model_id)
        all_tags = {**tags, **{key: f"{value:.8g}" for key, value in scores.items()}}
        for key, value in all_tags.items():
            client.set_model_version_tag(name, version, key, value)
        if description:
            client.update_model_version(name, version, description)
        alias, note = _place(client, name, version, all_tags, aliases, select_by)
    return Registered(f"models:/{name}/{version}", alias, note)


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias -> version; the name is made if it is new."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def _version(client: MlflowClient, run_id: str, name: str, model_id: str) -> str:
    """Version of this LoggedModel, made if there is none."""
    source = f"{_LOGGED}{model_id}"
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.source == source:
            return str(found.version)
    made = str(client.create_model_version(name, source=source, run_id=run_id, model_id=model_id).version)
    # What MLflow's own function for this also does: the model's page shows its versions.
    known = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    versions = [*(entry for entry in known if entry["name"] != name), {"name": name, "version": made}]
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})
    return made


def _place(
    client: MlflowClient,
    name: str,
    version: str,
    tags: Mapping[str, str],
    aliases: Mapping[str, str],
    select_by: str,
) -> tuple[Alias | None, str]:
    """Move the aliases as a version deserves; what it is then, and why."""
    held = {alias: client.get_model_version(name, number).tags for alias, number in aliases.items()}
    wins, note = beats(tags, select_by, held.get(CHAMPION))
    before = aliases.get(CHAMPION)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, version)
        if aliases.get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        if before not in (None, version):
            client.set_registered_model_alias(name, CHALLENGER, before)
        return CHAMPION, note
    comparable = all(held[CHAMPION].get(key) == tags.get(key) for key in COMPARABLE)
    if comparable and beats(tags, select_by, held.get(CHALLENGER))[0]:
        client.set_registered_model_alias(name, CHALLENGER, version)
        return CHALLENGER, note
    return None, note


def beats(tags: Mapping[str, str], select_by: str, held: Mapping[str, str] | None) -> tuple[bool, str]:
    """Whether a version takes the place of the one that holds an alias, and why; higher scores win.

    Args:
        tags: of the version, with its scores.
        select_by: the score that decides.
        held: tags of the one that holds the alias, if there is one.
    """
    if held is None:
        return True, "the first of its name"
    for key in COMPARABLE:
        if held.get(key) != tags.get(key):
            return False, f"the champion has another {key}; set evaluate.model_name to register under another name"
    if select_by not in held:
        return True, f"the champion has no {select_by}"
    if held.get("weights_sha256") == tags.get("weights_sha256"):
        return True, "the same weights, scored again"
    score, best = float(tags[select_by]), float(held[select_by])
    return score > best, f"{select_by} {score:.4g}, the champion had {best:.4g}"
