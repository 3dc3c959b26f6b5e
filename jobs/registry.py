"""The model registry: versions with their scores, and the one that is the champion."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from jobs.tracking import Tracker

CHAMPION = "champion"
_LOGGED = "models:/"  # where a version comes from: this and the id of a LoggedModel
# Tags of a version. ELBOs of other data, or under another kind of p(x|z), cannot be held against each other.
COMPARABLE = ("data_fingerprint", "likelihood")


@dataclass(frozen=True)
class Registered:
    """A model version and whether it now is the champion."""

    uri: str  # models:/NAME/VERSION
    model_id: str  # of the LoggedModel
    champion: bool
    note: str  # why, in a few words


def register(
    tracker: Tracker,
    run_id: str,
    name: str,
    folder: Path,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    scores: Mapping[str, float],
    select_by: str,
) -> Registered:
    """Keep a checkpoint as a model version with its scores, and make it the champion if it is the best.

    Weights that are registered already keep their version and get the new scores.

    Args:
        tracker: where.
        run_id: the training.
        name: in the registry.
        folder: files of the checkpoint.
        params: settings in command-line spelling.
        tags: `weights_sha256`, and what must be equal for scores to be comparable (`COMPARABLE`).
        scores: by name; those without a slash become tags of the version.
        select_by: which of them decides.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracker.errors():
        client = tracker.client
        wins, note = beats(scores[select_by], select_by, tags, _champion_tags(client, name))
        version, model_id = _version(tracker, run_id, name, folder, params, tags["weights_sha256"])
        for key, value in (*tags.items(), *((k, repr(v)) for k, v in scores.items() if "/" not in k)):
            client.set_model_version_tag(name, version, key, value)
        if wins:
            client.set_registered_model_alias(name, CHAMPION, version)
    return Registered(f"models:/{name}/{version}", model_id, wins, note)


def _champion_tags(client: MlflowClient, name: str) -> Mapping[str, str] | None:
    """Tags of the present champion; the name is made if it is new."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[CHAMPION]).tags if CHAMPION in aliases else None


def _version(
    tracker: Tracker, run_id: str, name: str, folder: Path, params: Mapping[str, str], weights_sha256: str
) -> tuple[str, str]:
    """Version and LoggedModel of these weights of this run, made if there are none."""
    client = tracker.client
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.run_id == run_id and found.tags.get("weights_sha256") == weights_sha256:
            return str(found.version), str(found.source).removeprefix(_LOGGED)
    model = client.create_logged_model(
        tracker.experiment, name=name, source_run_id=run_id, params=dict(params), model_type="vlae"
    )
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    made = client.create_model_version(
        name,
        source=f"{_LOGGED}{model.model_id}",
        run_id=run_id,
        model_id=model.model_id,
        tags={"weights_sha256": weights_sha256},
    )
    return str(made.version), str(model.model_id)


def beats(
    score: float, select_by: str, tags: Mapping[str, str], champion: Mapping[str, str] | None
) -> tuple[bool, str]:
    """Whether a model becomes the champion, and why. Tags are those of model versions; higher scores win."""
    if champion is None:
        return True, "the first of its name"
    for key in COMPARABLE:
        if champion.get(key) != tags.get(key):
            return False, f"the champion has another {key}; set evaluate.model_name to register under another name"
    if select_by not in champion:
        return True, f"the champion has no {select_by}"
    if champion.get("weights_sha256") == tags.get("weights_sha256"):
        return True, "the same weights, scored again"
    best = float(champion[select_by])
    return score > best, f"{select_by} {score:.4g}, the champion had {best:.4g}"
