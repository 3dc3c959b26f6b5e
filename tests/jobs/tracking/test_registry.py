"""Checkpoints in MLflow: LoggedModels, versions, aliases, and the model that whoever loads it gets."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset

from jobs.checkpoints.format import FORMAT, load_model, weights_sha256
from jobs.errors import UserError
from jobs.evaluation.encode import encode
from jobs.events import MetricPoint
from jobs.tracking.client import Tracker
from jobs.tracking.models import RunProvenance, log_checkpoint
from jobs.tracking.registry import fetch, ranked, register, resolve
from jobs.training.snapshot import Snapshot
from vlae.config import HvaeConfig, VlaeConfig
from vlae.models.factory import build_model

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def checkpoint(folder: Path, seed: int = 0, kind: type[VlaeConfig | HvaeConfig] = VlaeConfig, step: int = 12) -> Path:
    config = kind(latent_dims=(2, 3), width=4, hidden_dims=8)
    model = build_model(config, (3, 16, 16), seed)
    history = [
        MetricPoint(step - 2, 1_700_000_000_000, {"validation/elbo": -3.0}),
        MetricPoint(step, 1_700_000_001_000, {"train/loss": 2.0, "train/images_per_second": 5.0}),
        MetricPoint(step, 1_700_000_002_000, {"validation/elbo": -2.5}),
    ]
    meta = {
        "format": FORMAT,
        "step": step,
        "model": config.model_dump(mode="json"),
        "image_shape": (3, 16, 16),
        "data_fingerprint": "abc",
    }
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Snapshot(step, -2.5, weights, None, {}, history, [], meta).write(path)
    return path


def origin(tracker: Tracker) -> RunProvenance:
    run_id = tracker.start_run("vlae-digits", {"depth": "2"}, DATASET, key="k")
    return RunProvenance(run_id, "vlae-digits", {"depth": "2"}, DATASET, IMAGES[:2])


def logged(tracker: Tracker, folder: Path, seed: int = 0) -> tuple[str, str]:
    """Id of the LoggedModel and sha256 of its weights."""
    made = checkpoint(folder / str(seed), seed)
    return log_checkpoint(tracker, origin(tracker), made), weights_sha256(load_model(made))


def test_a_checkpoint_is_one_logged_model_with_step_scores_and_data(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    made, source = checkpoint(tmp_path / "c"), origin(tracker)
    model_id = log_checkpoint(tracker, source, made)
    assert log_checkpoint(tracker, source, made) == model_id
    model = client.get_logged_model(model_id)
    assert (str(model.status), model.source_run_id) == ("READY", source.run_id)
    assert model.params == {"depth": "2", "step": "12"}
    scores = {metric.key: metric for metric in model.metrics}
    assert {key: metric.value for key, metric in scores.items()} == {"train/loss": 2.0, "validation/elbo": -2.5}
    assert {(m.step, m.dataset_name, m.dataset_digest) for m in scores.values()} == {(12, "digits", "abc")}
    outputs = client.get_run(source.run_id).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model_id, 12)]
    files = {path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()}
    assert {"MLmodel", "served_model.py", "checkpoint.json", "model.safetensors", "input_example.json"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".pth", ".cloudpickle")) or "optimizer" in name]


class Registry:
    """A registry with the versions of up to four models, each registered with some score."""

    def __init__(self, tracker: Tracker, client: MlflowClient, folder: Path) -> None:
        self.tracker, self.client, self.run_id = tracker, client, origin(tracker).run_id
        self.models = [logged(tracker, folder, seed) for seed in range(4)]

    def register(self, number: int, scores: dict[str, float], champion_metric: str = "elbo", **tags: str) -> str:
        """`1 champion`, `2 challenger`, `3 None`."""
        model_id, weights = self.models[number]
        known = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights, **tags}
        made = register(
            self.tracker, self.run_id, "digits", model_id, tags=known, scores=scores, champion_metric=champion_metric
        )
        return f"{made.uri.removeprefix('models:/digits/')} {made.alias}"

    @property
    def aliases(self) -> dict[str, int]:
        return {name: int(version) for name, version in self.client.get_registered_model("digits").aliases.items()}


@pytest.fixture
def registry(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> Registry:
    return Registry(tracker, client, tmp_path)


def test_versions_and_their_aliases(registry: Registry, client: MlflowClient) -> None:
    assert registry.register(0, {"elbo": -100.0}) == "1 champion"
    assert registry.aliases == {"champion": 1}
    assert registry.register(1, {"elbo": -90.0}) == "2 champion"
    assert registry.aliases == {"champion": 2, "challenger": 1}
    assert registry.register(2, {"elbo": -95.0}) == "3 challenger"
    assert registry.register(2, {"elbo": -95.0}) == "3 challenger"  # an evaluation repeated adds no version
    assert registry.register(3, {"elbo": -80.0}, data_fingerprint="other") == "4 None"
    assert registry.aliases == {"champion": 2, "challenger": 3}
    assert client.get_model_version("digits", "2").tags["elbo"] == "-90"


def test_scores_that_change_move_the_aliases(registry: Registry) -> None:
    for number, elbo in enumerate((-100.0, -90.0, -95.0)):
        registry.register(number, {"elbo": elbo})
    assert registry.register(1, {"elbo": -99.0}) == "2 challenger"
    assert registry.aliases == {"champion": 3, "challenger": 2}
    assert registry.register(1, {"elbo": -500.0}) == "2 None"
    assert registry.aliases == {"champion": 3, "challenger": 1}


def test_aliases_that_a_kill_left_half_moved_are_mended(registry: Registry, client: MlflowClient) -> None:
    registry.register(0, {"elbo": -100.0})
    registry.register(1, {"elbo": -90.0})
    client.delete_registered_model_alias("digits", "challenger")
    client.set_registered_model_alias("digits", "champion", "1")
    registry.register(1, {"elbo": -90.0})
    assert registry.aliases == {"champion": 2, "challenger": 1}


def test_a_score_that_is_missing_gives_no_alias(registry: Registry) -> None:
    registry.register(0, {"elbo": -100.0})
    assert registry.register(1, {"elbo": -90.0}, champion_metric="mig") == "2 None"
    assert registry.aliases == {"champion": 1}
    assert registry.register(2, {"elbo": -95.0, "mig": 0.3}, champion_metric="mig") == "3 champion"
    assert registry.aliases == {"champion": 3}


@pytest.mark.parametrize("key", ["data_fingerprint", "likelihood", "evaluate.num_images", "evaluate.seed"])
def test_only_what_can_be_compared_is_ranked(key: str) -> None:
    tags = dict.fromkeys(("data_fingerprint", "likelihood", "evaluate.num_images", "evaluate.seed"), "a")
    versions = {
        "1": {**tags, "elbo": "-2"},
        "2": {**tags, "elbo": "-1.5"},
        "3": {**tags, key: "b", "elbo": "0"},
        "4": tags,
        "10": {**tags, "elbo": "-1.5"},
    }
    assert ranked(versions, tags, "elbo") == ["2", "10", "1"]


def registered_model(tracker: Tracker, folder: Path) -> str:
    model_id, weights = logged(tracker, folder)
    tags = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights}
    run_id = origin(tracker).run_id
    return register(tracker, run_id, "digits", model_id, tags=tags, scores={"elbo": -1.0}, champion_metric="elbo").uri


@pytest.mark.filterwarnings("ignore:.*already imported.*")
def test_the_served_model_gives_the_codes_of_the_training_code(tracker: Tracker, tmp_path: Path) -> None:
    registered_model(tracker, tmp_path)
    served = mlflow.pyfunc.load_model("models:/digits@champion")
    codes = served.predict(IMAGES.permute(0, 2, 3, 1).numpy())
    expected = encode(load_model(tmp_path / "0" / "step-00000012"), IMAGES, torch.Generator().manual_seed(0)).means
    assert list(codes) == ["rung_0", "rung_1"]
    for found, means in zip(codes.values(), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, means, atol=1e-6)
    schema = served.metadata.signature
    assert schema.inputs.inputs[0].shape == (-1, 16, 16, 3)
    assert [spec.shape for spec in schema.outputs.inputs] == [(-1, 2), (-1, 3)]
    assert np.array_equal(served.input_example, IMAGES[:2].permute(0, 2, 3, 1).numpy())
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        served.predict(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.slow
def test_it_is_loaded_without_a_checkout(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    """From another folder, with nothing but the installed package on the path."""
    registered_model(tracker, tmp_path)
    program = (
        "import sys, mlflow, numpy as np; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/digits@champion');"
        "codes = model.predict(np.zeros((2, 16, 16, 3), np.uint8)); print({k: v.shape for k, v in codes.items()})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:jobs", "-c", program, f"sqlite:///{tmp_path / 'mlflow.db'}"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "{'rung_0': (2, 2), 'rung_1': (2, 3)}", done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json"])
def test_a_tampered_model_is_refused(tracker: Tracker, client: MlflowClient, tmp_path: Path, name: str) -> None:
    registered_model(tracker, tmp_path)
    version = client.get_model_version_by_alias("digits", "champion")
    location = client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    file = Path(location.removeprefix("file://")) / "artifacts" / "checkpoint" / name
    content = bytearray(file.read_bytes())
    if name == "checkpoint.json":
        meta = json.loads(content)
        meta["model"]["likelihood"] = "gaussian"
        file.write_text(json.dumps(meta))
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not as it was written"):
        mlflow.pyfunc.load_model("models:/digits@champion")


def test_a_version_is_looked_up_and_fetched(tracker: Tracker, tmp_path: Path) -> None:
    uri = registered_model(tracker, tmp_path)
    expected = weights_sha256(load_model(tmp_path / "0" / "step-00000012"))
    for asked in (uri, "models:/digits@champion"):
        version = resolve(tracker, asked)
        assert (version.uri, version.weights_sha256) == ("models:/digits/1", expected)
        assert weights_sha256(load_model(fetch(tracker, version, tmp_path / "model"))) == expected
    for missing in ("models:/digits/7", "models:/digits@best", "models:/cats/1"):
        with pytest.raises(UserError, match=r"no such version; its models: models:/digits"):
            resolve(tracker, missing)


def test_other_weights_than_were_registered_are_refused(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    """Whole files of another model, hashes and all."""
    version = resolve(tracker, registered_model(tracker, tmp_path))
    location = Path(client.get_logged_model(version.model_id).artifact_location.removeprefix("file://"))
    for file in checkpoint(tmp_path / "other", seed=5).iterdir():
        if (target := location / "artifacts" / "checkpoint" / file.name).exists():
            target.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"models:/digits/1 holds other weights than were registered: evaluate its"):
        fetch(tracker, version, tmp_path / "model")
