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

from jobs.checkpoints.format import load_model, weights_sha256
from jobs.cli import format_number
from jobs.errors import UserError
from jobs.files import remove_folder
from jobs.tracking.client import Tracker
from jobs.tracking.pyfunc import CHECKPOINT

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
_MODEL_BYTES = 100_000_000  # of a checkpoint, seldom more; a server reads all of it before it answers
_LOGGED = "models:/"  # where a version comes from: this and the id of a LoggedModel
# Tags of a version. ELBOs of other images, or under another kind of p(x|z), cannot be held against each other.
COMPARABLE = ("data_fingerprint", "likelihood", "evaluate.num_images", "evaluate.seed")


@dataclass(frozen=True)
class Registered:
    """A model version and what it now is."""

    uri: str  # models:/NAME/VERSION
    alias: Alias | None
    note: str  # why, in a few words


@dataclass(frozen=True)
class Version:
    """A model version of the registry."""

    uri: str  # models:/NAME/VERSION
    model_id: str  # of the LoggedModel
    weights_sha256: str


def resolve(tracker: Tracker, uri: str) -> Version:
    """Look up which version an address means now.

    Args:
        tracker: where the registry is.
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        UserError: there is no such version, it is not of this pipeline, or MLflow does not answer.
    """
    name, alias, number = re.fullmatch(r"models:/([\w.-]+)(?:@([\w-]+)|/(\d+))", uri).groups()  # type: ignore[union-attr]
    with tracker.errors():
        client = tracker.client
        try:
            found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        except MlflowException as error:
            known = ", ".join(f"models:/{model.name}" for model in client.search_registered_models()) or "none"
            raise UserError(f"model_uri={uri}: the registry has no such version; its models: {known}") from error
    if "weights_sha256" not in found.tags:
        raise UserError(f"model_uri={uri} was not registered by this pipeline, which alone knows how to evaluate it")
    source = str(found.source).removeprefix(_LOGGED)
    return Version(f"models:/{name}/{found.version}", source, found.tags["weights_sha256"])


def fetch(tracker: Tracker, version: Version, folder: Path) -> Path:
    """Download the checkpoint of a version into `folder`, in place of what is there.

    Returns:
        The checkpoint, verified.

    Raises:
        UserError: it is missing, or not as it was registered, or MLflow does not answer.
    """
    remove_folder(folder)
    folder.mkdir(parents=True)
    mend = "evaluate its training again, to register it anew"
    with tracker.errors(), tracker.transfer(_MODEL_BYTES):
        try:
            place = Path(mlflow.artifacts.download_artifacts(f"{version.uri}/{CHECKPOINT}", dst_path=str(folder)))
        except (MlflowException, FileNotFoundError) as error:
            raise UserError(f"{version.uri} holds no checkpoint ({error}): {mend}") from error
    try:
        found = weights_sha256(load_model(place))
    except UserError as error:
        raise UserError(f"{version.uri} is damaged ({error.__cause__ or error}): {mend}") from error
    if found != version.weights_sha256:
        raise UserError(f"{version.uri} holds other weights than were registered: {mend}")
    return place


def register(
    tracker: Tracker,
    run_id: str,
    name: str,
    model_id: str,
    *,
    tags: Mapping[str, str],
    scores: Mapping[str, float],
    champion_metric: str,
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
        champion_metric: which of them decides.
        description: of the version, in Markdown.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracker.errors():
        client = tracker.client
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = _version(client, run_id, name, model_id)
        all_tags = {**tags, **{key: f"{value:.8g}" for key, value in scores.items()}}
        for key, value in all_tags.items():
            client.set_model_version_tag(name, version, key, value)
        if description:
            client.update_model_version(name, version, description)
        alias, note = _place(client, name, version, all_tags, champion_metric)
    return Registered(f"models:/{name}/{version}", alias, note)


def _version(client: MlflowClient, run_id: str, name: str, model_id: str) -> str:
    """Version of this LoggedModel, made if there is none."""
    source = f"{_LOGGED}{model_id}"
    known = [found for found in client.search_model_versions(f"name = '{name}'") if found.source == source]
    version = known[0] if known else client.create_model_version(name, source, run_id, model_id=model_id)
    # What MLflow's own function for this also does: the model's page shows its versions.
    shown = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    entries = [*(entry for entry in shown if entry["name"] != name), {"name": name, "version": version.version}]
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(entries)})
    return str(version.version)


def _place(
    client: MlflowClient, name: str, version: str, tags: Mapping[str, str], champion_metric: str
) -> tuple[Alias | None, str]:
    """Set the aliases by the scores of all versions that can be compared; what this version is then, and why.

    The tags alone decide, so a command that was killed half-way is mended by the next.
    """
    aliases = client.get_registered_model(name).aliases
    champion = client.get_model_version(name, aliases[CHAMPION]).tags if CHAMPION in aliases else tags
    for key in COMPARABLE:
        if champion.get(key) != tags.get(key):
            return None, f"the champion has another {key}; set evaluate.model_name to register under another name"
    if champion_metric not in tags:
        return None, f"it has no {champion_metric} on these data"
    found = {str(found.version): found.tags for found in client.search_model_versions(f"name = '{name}'")}
    first, *others = ranked(found, tags, champion_metric)
    if others:
        client.set_registered_model_alias(name, CHALLENGER, others[0])
    elif CHALLENGER in aliases:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_alias(name, CHAMPION, first)
    mine, best = (format_number(float(one[champion_metric])) for one in (tags, found[first]))
    if version == first:
        against = (
            f"the next has {format_number(float(found[others[0]][champion_metric]))}"
            if others
            else "the first of its kind"
        )
        return CHAMPION, f"{champion_metric} {mine}, {against}"
    note = f"{champion_metric} {mine}, the champion has {best}"
    return (CHALLENGER if version == others[0] else None), note


def ranked(versions: Mapping[str, Mapping[str, str]], tags: Mapping[str, str], champion_metric: str) -> list[str]:
    """The versions that can be compared with one of these tags, the highest score first, the older of equals first.

    Args:
        versions: tags by version number.
        tags: what `COMPARABLE` must be.
        champion_metric: the tag with the score.
    """
    alike = [
        number
        for number, held in versions.items()
        if champion_metric in held and all(held.get(key) == tags.get(key) for key in COMPARABLE)
    ]
    return sorted(alike, key=lambda number: (-float(versions[number][champion_metric]), int(number)))
