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

from jobs.checkpoint import load_model, save_checkpoint, weights_sha256
from jobs.codes import encode
from jobs.errors import UserError
from jobs.logged import Origin, log_checkpoint
from jobs.messages import Point
from jobs.registry import beats, fetch, register
from jobs.tracking import Tracker
from vlae.build import build_model
from vlae.config import HvaeConfig, VlaeConfig

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def checkpoint(folder: Path, seed: int = 0, kind: type[VlaeConfig | HvaeConfig] = VlaeConfig, step: int = 12) -> Path:
    config = kind(latent_dims=(2, 3), width=4, hidden=8)
    model = build_model(config, (3, 16, 16), seed)
    return save_checkpoint(
        folder,
        step=step,
        model=model,
        model_config=config,
        optimizer=torch.optim.AdamW(model.parameters()),
        ema=None,
        history=[
            Point(step - 2, 1_700_000_000_000, {"validation/elbo": -3.0}),
            Point(step, 1_700_000_001_000, {"train/loss": 2.0, "train/images_per_second": 5.0}),
            Point(step, 1_700_000_002_000, {"validation/elbo": -2.5}),
        ],
        data_fingerprint="abc",
        keep=2,
    )


def origin(tracker: Tracker) -> Origin:
    run_id = tracker.start_run("vlae-digits", {"depth": "2"}, DATASET, key="k")
    return Origin(run_id, "vlae-digits", {"depth": "2"}, DATASET, IMAGES[:2])


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


def test_versions_and_their_aliases(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    models = [logged(tracker, tmp_path, seed) for seed in range(4)]

    def registered(number: int, elbo: float, **tags: str) -> tuple[str, str | None]:
        model_id, weights = models[number]
        known = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights, **tags}
        made = register(
            tracker, origin(tracker).run_id, "digits", model_id, tags=known, scores={"elbo": elbo}, select_by="elbo"
        )
        return made.uri, made.alias

    def aliases() -> dict[str, int]:
        return {name: int(version) for name, version in client.get_registered_model("digits").aliases.items()}

    assert registered(0, -100.0) == ("models:/digits/1", "champion")
    assert aliases() == {"champion": 1}
    assert registered(1, -90.0) == ("models:/digits/2", "champion")
    assert aliases() == {"champion": 2, "challenger": 1}  # who was the champion
    assert registered(2, -95.0) == ("models:/digits/3", "challenger")
    assert registered(2, -95.0) == ("models:/digits/3", "challenger")  # an evaluation repeated adds no version
    assert registered(3, -80.0, data_fingerprint="other") == ("models:/digits/4", None)
    assert registered(1, -91.0) == ("models:/digits/2", "champion")
    assert registered(2, -50.0) == ("models:/digits/3", "champion")
    assert aliases() == {"champion": 3, "challenger": 2}
    assert client.get_model_version("digits", "2").tags["elbo"] == "-91"


@pytest.mark.parametrize(
    ("champion", "wins"),
    [
        (None, True),
        ({"elbo": "-2.0"}, True),
        ({"elbo": "-1.0"}, False),
        ({"elbo": "-0.5"}, False),
        ({}, True),
        ({"elbo": "-0.5", "weights_sha256": "w"}, True),
        ({"elbo": "-2.0", "data_fingerprint": "b"}, False),
        ({"elbo": "-2.0", "likelihood": "bernoulli"}, False),
    ],
)
def test_who_becomes_champion(champion: dict[str, str] | None, wins: bool) -> None:
    tags = {"data_fingerprint": "a", "likelihood": "logistic", "weights_sha256": "w"}
    held = None if champion is None else {**tags, "weights_sha256": "v", **champion}
    assert beats({**tags, "elbo": "-1.0"}, "elbo", held)[0] is wins


def registered_model(tracker: Tracker, folder: Path) -> str:
    model_id, weights = logged(tracker, folder)
    tags = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights}
    run_id = origin(tracker).run_id
    return register(tracker, run_id, "digits", model_id, tags=tags, scores={"elbo": -1.0}, select_by="elbo").uri


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


def test_a_version_is_fetched(tracker: Tracker, tmp_path: Path) -> None:
    uri = registered_model(tracker, tmp_path)
    for asked in (uri, "models:/digits@champion"):
        fetched = fetch(tracker, asked, tmp_path / "model")
        assert fetched.uri == "models:/digits/1"
        assert weights_sha256(load_model(fetched.checkpoint)) == weights_sha256(
            load_model(tmp_path / "0" / "step-00000012")
        )
    for missing in ("models:/digits/7", "models:/digits@best", "models:/cats/1"):
        with pytest.raises(UserError, match=r"no such version; its models: models:/digits"):
            fetch(tracker, missing, tmp_path / "model")
