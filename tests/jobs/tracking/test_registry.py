"""Checkpoints in MLflow: LoggedModels, versions, aliases, and the model that MLflow loads."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset

from jobs.checkpoints.format import FORMAT, Snapshot, load_model, weights_sha256
from jobs.config import TrackingConfig
from jobs.errors import CorruptedError, UserError
from jobs.evaluation.encode import encode
from jobs.events import MetricPoint
from jobs.tracking.client import Tracker
from jobs.tracking.models import RunProvenance, log_checkpoint, repair_model
from jobs.tracking.registry import COMPARABLE, fetch, load_encoder, ranked, register, resolve
from vlae.config import HvaeConfig, VlaeConfig
from vlae.models.factory import build_model

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
IMAGES = torch.arange(5 * 3 * 16 * 16).mul(37).remainder(256).to(torch.uint8).view(5, 3, 16, 16)


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


def provenance(tracker: Tracker) -> RunProvenance:
    run_id = tracker.start_run("vlae-digits", {"depth": "2"}, DATASET, key="k")
    return RunProvenance(run_id, "vlae-digits", {"depth": "2"}, DATASET, IMAGES[:2])


def log_model(tracker: Tracker, folder: Path, seed: int = 0) -> tuple[str, str]:
    """Log a checkpoint; return the id of the LoggedModel and the sha256 of its weights."""
    path = checkpoint(folder / str(seed), seed)
    return log_checkpoint(tracker, provenance(tracker), path), weights_sha256(load_model(path))


def test_log_checkpoint_twice_gives_one_model_with_metrics(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    path, source = checkpoint(tmp_path / "c"), provenance(tracker)
    model_id = log_checkpoint(tracker, source, path)
    assert log_checkpoint(tracker, source, path) == model_id
    model = client.get_logged_model(model_id)
    assert (str(model.status), model.source_run_id) == ("READY", source.run_id)
    assert model.params == {"depth": "2", "step": "12"}
    scores = {metric.key: metric for metric in model.metrics}
    assert {key: metric.value for key, metric in scores.items()} == {"train/loss": 2.0, "validation/elbo": -2.5}
    assert {(m.step, m.dataset_name, m.dataset_digest) for m in scores.values()} == {(12, "digits", "abc")}
    outputs = client.get_run(source.run_id).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model_id, 12)]
    files = {path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()}
    assert {"MLmodel", "checkpoint.json", "model.safetensors", "input_example.json"} <= files
    code = (".py", ".pkl", ".pt", ".pth", ".cloudpickle")
    assert not [name for name in files if name.endswith(code) or "optimizer" in name]


class Registry:
    """A model registry and models to register."""

    def __init__(self, tracker: Tracker, client: MlflowClient, folder: Path) -> None:
        self.tracker, self.client, self.run_id = tracker, client, provenance(tracker).run_id
        self._log_model = cache(lambda index: log_model(tracker, folder, index))

    def register(self, index: int, metrics: dict[str, float], champion_metric: str = "elbo", **tags: str) -> str:
        """Register a model; return its version and alias: `1 champion`, `2 challenger`, `3 None`."""
        model_id, weights = self._log_model(index)
        all_tags = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights, **tags}
        registered = register(
            self.tracker,
            self.run_id,
            "digits",
            model_id,
            tags=all_tags,
            metrics=metrics,
            champion_metric=champion_metric,
        )
        return f"{registered.uri.removeprefix('models:/digits/')} {registered.alias}"

    @property
    def aliases(self) -> dict[str, int]:
        return {name: int(version) for name, version in self.client.get_registered_model("digits").aliases.items()}


@pytest.fixture
def registry(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> Registry:
    return Registry(tracker, client, tmp_path)


def test_register_ranks_versions_by_their_metric(registry: Registry, client: MlflowClient) -> None:
    assert registry.register(0, {"elbo": -100.0}) == "1 champion"
    assert registry.aliases == {"champion": 1}
    assert registry.register(1, {"elbo": -90.0}) == "2 champion"
    assert registry.aliases == {"champion": 2, "challenger": 1}
    assert registry.register(2, {"elbo": -95.0}) == "3 challenger"
    assert registry.register(2, {"elbo": -95.0}) == "3 challenger"  # an evaluation repeated adds no version
    assert registry.register(3, {"elbo": -80.0}, data_fingerprint="other") == "4 None"
    assert registry.aliases == {"champion": 2, "challenger": 3}
    assert client.get_model_version("digits", "2").tags["elbo"] == "-90"


def test_register_with_a_new_metric_moves_the_aliases(registry: Registry) -> None:
    for index, elbo in enumerate((-100.0, -90.0, -95.0)):
        registry.register(index, {"elbo": elbo})
    assert registry.register(1, {"elbo": -99.0}) == "2 challenger"
    assert registry.aliases == {"champion": 3, "challenger": 2}
    assert registry.register(1, {"elbo": -500.0}) == "2 None"
    assert registry.aliases == {"champion": 3, "challenger": 1}


def test_register_after_a_kill_completes_the_aliases(registry: Registry, client: MlflowClient) -> None:
    registry.register(0, {"elbo": -100.0})
    registry.register(1, {"elbo": -90.0})
    client.delete_registered_model_alias("digits", "challenger")
    client.set_registered_model_alias("digits", "champion", "1")
    registry.register(1, {"elbo": -90.0})
    assert registry.aliases == {"champion": 2, "challenger": 1}


def test_register_without_the_metric_gives_no_alias(registry: Registry) -> None:
    registry.register(0, {"elbo": -100.0})
    assert registry.register(1, {"elbo": -90.0}, champion_metric="mig") == "2 None"
    assert registry.aliases == {"champion": 1}
    assert registry.register(2, {"elbo": -95.0, "mig": 0.3}, champion_metric="mig") == "3 champion"
    assert registry.aliases == {"champion": 3}


def test_register_during_another_registration_keeps_the_best(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better model is registered between the moment the worse one has read the versions and sets the aliases."""
    search = registry.tracker.client.search_model_versions
    reads = []

    def search_then_lose(query: str) -> object:
        versions = search(query)
        reads.append(query)
        if len(reads) == 2:  # the first call looks for an existing version
            monkeypatch.undo()
            assert registry.register(1, {"elbo": -90.0}) == "2 champion"
        return versions

    monkeypatch.setattr(registry.tracker.client, "search_model_versions", search_then_lose)
    assert registry.register(0, {"elbo": -100.0}) == "1 challenger"
    assert registry.aliases == {"champion": 2, "challenger": 1}


def test_register_accepts_a_model_that_was_just_created(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_registered_model("digits")
    monkeypatch.setattr(registry.tracker.client, "search_registered_models", lambda query: [])
    assert registry.register(0, {"elbo": -100.0}) == "1 champion"


def register_in_turns(uri: str, folder: Path, models: list[tuple[str, str]], barrier: Barrier, index: int) -> None:
    """Register models under the names race-0, race-1, ..., each at the same time as the other processes do."""
    tracker = Tracker(TrackingConfig(uri=uri), folder)
    for number in range(len(models)):
        model_id, run_id = models[(index + number) % len(models)]
        tags = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": model_id}
        barrier.wait(100)
        # In each round another process has the best model.
        metrics = {"elbo": -1.0 - (index + number) % len(models)}
        name = f"race-{number}"
        register(tracker, run_id, name, model_id, tags=tags, metrics=metrics, champion_metric="elbo")


@pytest.mark.slow
@pytest.mark.parametrize("server", [False, True], ids=["sqlite", "server"])
def test_best_of_models_registered_at_once_is_champion(
    request: pytest.FixtureRequest, tmp_path: Path, server: bool
) -> None:
    if server:
        tracker = Tracker(TrackingConfig(uri=request.getfixturevalue("mlflow_server").uri), tmp_path)
    else:
        tracker = request.getfixturevalue("tracker")
    run_id = provenance(tracker).run_id
    models = [(log_model(tracker, tmp_path, seed)[0], run_id) for seed in range(3)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(models))
    processes = [
        context.Process(target=register_in_turns, args=(tracker.config.uri, tmp_path, models, barrier, index))
        for index in range(len(models))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * len(models)
    for number in range(len(models)):
        aliases = tracker.client.get_registered_model(f"race-{number}").aliases
        elbos = {
            alias: float(tracker.client.get_model_version(f"race-{number}", version).tags["elbo"])
            for alias, version in aliases.items()
        }
        assert elbos == {"champion": -1.0, "challenger": -2.0}


@pytest.mark.parametrize("key", COMPARABLE)
def test_ranked_leaves_out_versions_with_other_tags(key: str) -> None:
    tags = dict.fromkeys(COMPARABLE, "a")
    versions = {
        "1": {**tags, "elbo": "-2"},
        "2": {**tags, "elbo": "-1.5"},
        "3": {**tags, key: "b", "elbo": "0"},
        "4": tags,
        "10": {**tags, "elbo": "-1.5"},
    }
    assert ranked(versions, tags, "elbo") == ["2", "10", "1"]


def registered_model(tracker: Tracker, folder: Path) -> str:
    """Register a model; return the address of its version."""
    model_id, weights = log_model(tracker, folder)
    tags = {"data_fingerprint": "abc", "likelihood": "logistic", "weights_sha256": weights}
    run_id = provenance(tracker).run_id
    return register(tracker, run_id, "digits", model_id, tags=tags, metrics={"elbo": -1.0}, champion_metric="elbo").uri


@pytest.mark.filterwarnings("ignore:.*already imported.*")
def test_loaded_model_encodes_as_the_training_code_does(tracker: Tracker, tmp_path: Path) -> None:
    registered_model(tracker, tmp_path)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    codes = model.predict(IMAGES.permute(0, 2, 3, 1).numpy())
    expected = encode(load_model(tmp_path / "0" / "step-00000012"), IMAGES, torch.Generator().manual_seed(0)).means
    assert list(codes) == ["rung_0", "rung_1"]
    for code, means in zip(codes.values(), expected, strict=True):
        assert code.dtype == np.float32
        np.testing.assert_allclose(code, means, atol=1e-6)
    schema = model.metadata.signature
    assert schema.inputs.inputs[0].shape == (-1, 16, 16, 3)
    assert [spec.shape for spec in schema.outputs.inputs] == [(-1, 2), (-1, 3)]
    assert np.array_equal(model.input_example, IMAGES[:2].permute(0, 2, 3, 1).numpy())
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        model.predict(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.slow
def test_model_loads_from_the_installed_package_alone(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    """A process in another folder, without a checkout on its path, loads the model."""
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
def test_loading_a_damaged_model_is_refused(tracker: Tracker, client: MlflowClient, tmp_path: Path, name: str) -> None:
    registered_model(tracker, tmp_path)
    version = client.get_model_version_by_alias("digits", "champion")
    location = client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    file = Path(location.removeprefix("file://")) / "data" / "checkpoint" / name
    content = bytearray(file.read_bytes())
    if name == "checkpoint.json":
        meta = json.loads(content)
        meta["model"]["likelihood"] = "gaussian"
        file.write_text(json.dumps(meta))
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(CorruptedError, match=name):
        mlflow.pyfunc.load_model("models:/digits@champion")


def test_resolve_and_fetch_give_the_registered_weights(tracker: Tracker, tmp_path: Path) -> None:
    uri = registered_model(tracker, tmp_path)
    expected = weights_sha256(load_model(tmp_path / "0" / "step-00000012"))
    for address in (uri, "models:/digits@champion"):
        version = resolve(tracker, address)
        assert (version.uri, version.weights_sha256) == ("models:/digits/1", expected)
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "stale").touch()
        assert weights_sha256(load_model(fetch(tracker, version, tmp_path / "model"))) == expected
        assert not (tmp_path / "model" / "stale").exists()
    for missing in ("models:/digits/7", "models:/digits@best", "models:/cats/1"):
        with pytest.raises(UserError, match=rf"model_uri={missing}: .*models:/digits"):
            resolve(tracker, missing)


def artifacts(tracker: Tracker, model_id: str) -> dict[str, Path]:
    """Return the files of a LoggedModel by name."""
    folder = Path(tracker.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x")], ids=["missing", "changed"])
def test_repair_model_uploads_damaged_files_again(
    tracker: Tracker, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    source, path = provenance(tracker), checkpoint(tmp_path / "c")
    model_id = log_checkpoint(tracker, source, path)
    assert repair_model(tracker, source, path, model_id) == []
    files = artifacts(tracker, model_id)
    assert len(files) >= 8
    for file in files.values():
        damage(file)
    assert set(repair_model(tracker, source, path, model_id)) == set(files)
    assert artifacts(tracker, model_id).keys() == files.keys()
    assert repair_model(tracker, source, path, model_id) == []


def test_repair_model_without_a_record_uploads_it_again(tracker: Tracker, tmp_path: Path) -> None:
    source, path = provenance(tracker), checkpoint(tmp_path / "c")
    model_id = log_checkpoint(tracker, source, path)
    tracker.client.set_logged_model_tags(model_id, {"files_sha256": "none"})
    assert "MLmodel" in repair_model(tracker, source, path, model_id)
    assert repair_model(tracker, source, path, model_id) == []


def test_load_encoder_runs_nothing_from_the_artifacts(tracker: Tracker, tmp_path: Path) -> None:
    """Each file is replaced in turn, MLmodel by one that names foreign code: the codes are the same, or none."""
    version = resolve(tracker, registered_model(tracker, tmp_path))
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    expected = load_encoder(version.uri, tmp_path).predict(images)
    files = artifacts(tracker, version.model_id)
    (files["MLmodel"].parent / "foreign").mkdir()
    marker = tmp_path / "marker"
    (files["MLmodel"].parent / "foreign" / "foreign_model.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()"
    )
    foreign = "flavors:\n  python_function:\n    code: foreign\n    data: data\n    loader_module: foreign_model\n"
    errors = {}
    for name, file in files.items():
        content = file.read_bytes()
        file.write_text(foreign if name == "MLmodel" else "{}")
        try:
            codes = load_encoder("models:/digits@champion", tmp_path).predict(images)
            assert all(np.array_equal(codes[rung], expected[rung]) for rung in expected)
        except CorruptedError as error:
            errors[name] = str(error)
        file.write_bytes(content)
    assert list(errors) == ["data/checkpoint/checkpoint.json", "data/checkpoint/model.safetensors"]
    assert all(name in error and version.run_id in error for name, error in errors.items())
    assert not marker.exists()
    files["MLmodel"].write_text(foreign)
    with pytest.raises(AttributeError):
        mlflow.pyfunc.load_model("models:/digits@champion")
    assert marker.exists()  # so the planted code does run where MLmodel is read


@pytest.mark.parametrize("registry", [None, "sqlite:///registry.db"])
@pytest.mark.parametrize("tracking", [None, "http://h:5000"])
def test_load_encoder_keeps_the_addresses_of_the_caller(
    tracker: Tracker, tmp_path: Path, tracking: str | None, registry: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    mlflow.set_tracking_uri(tracking)  # type: ignore[arg-type]
    mlflow.set_registry_uri(registry)  # type: ignore[arg-type]
    addresses = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), mlflow.is_tracking_uri_set())
    with pytest.raises(UserError, match="not found"):
        load_encoder("models:/digits@champion", tmp_path)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), mlflow.is_tracking_uri_set()) == addresses
    assert os.environ.get("MLFLOW_REGISTRY_URI") == registry
    mlflow.set_tracking_uri("http://later:5000")
    assert mlflow.get_registry_uri() == (registry or "http://later:5000")


def test_fetch_of_other_weights_is_refused(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    """The files of another model, whose hashes are right, lie in place of the registered ones."""
    version = resolve(tracker, registered_model(tracker, tmp_path))
    location = Path(client.get_logged_model(version.model_id).artifact_location.removeprefix("file://"))
    for file in checkpoint(tmp_path / "other", seed=5).iterdir():
        if (target := location / "data" / "checkpoint" / file.name).exists():
            target.write_bytes(file.read_bytes())
    with pytest.raises(CorruptedError, match=r"models:/digits/1: .*registered"):
        fetch(tracker, version, tmp_path / "model")
