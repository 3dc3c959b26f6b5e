"""Checkpoints on a folder and on a real S3 server: whole or not there, whatever is left of one."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers.small_job import put, small_job
from safetensors.torch import load_file

from jobs.checkpoints.format import META, load_model, parse_meta, read_meta, seal, weights_sha256
from jobs.checkpoints.manager import Checkpoints
from jobs.checkpoints.writer import kept_steps
from jobs.errors import CorruptedError
from jobs.storage import open_store
from jobs.training.state import Training, Worker, prepare
from jobs.training.step import train_step

FILES = ["history.json", "model.safetensors", "optimizer.safetensors", "trained.safetensors"]
OLD, NEW = "step-00000003", "step-00000007"


@pytest.fixture(scope="module")
def training(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Two steps old, so that average, weights and moments differ."""
    training = prepare(small_job(digit_dataset, tmp_path_factory.mktemp("none")), Worker())
    for _ in range(2):
        train_step(training, training.loader.images(0))
    return training


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "place")
    return f"s3://{request.getfixturevalue('s3')}/some/place"


@pytest.fixture
def place(url: str, training: Training) -> Checkpoints:
    """With two checkpoints."""
    place = Checkpoints(url)
    put(place, training, 3)
    put(place, training, 7, score=-1.5)
    return place


def newest(place: Checkpoints, folder: Path) -> str | None:
    path = place.newest(folder / "copies")
    return path and path.name


def test_what_is_published_is_fetched(place: Checkpoints, training: Training, url: str, tmp_path: Path) -> None:
    assert place.steps() == [3, 7]
    assert place.scores() == {3: None, 7: -1.5}
    path = place.newest(tmp_path / "copies")
    assert path is not None
    assert path.name == NEW
    assert place.step_of(path) == 7
    assert sorted(file.name for file in path.iterdir()) == [META, *FILES]
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}  # also for one's colleagues
    assert weights_sha256(load_model(path)) == weights_sha256(training.ema.module) == read_meta(path)["weights_sha256"]
    trained = load_file(path / "trained.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in training.model.state_dict().items())
    assert place.fetch(3, tmp_path / "copies").name == OLD
    place.drop(7)
    assert place.steps() == [3]
    assert list(open_store(url).folders()) == [OLD]
    assert newest(Checkpoints(f"{url}/elsewhere"), tmp_path) is None


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "more", "missing"])
def test_a_damaged_one_is_passed_over(
    place: Checkpoints, training: Training, url: str, tmp_path: Path, how: str
) -> None:
    store, rng = open_store(url), random.Random(how)
    for name in [META, *FILES]:
        content = store.read(f"{NEW}/{name}")
        at = rng.randrange(1, len(content))
        if how == "missing":
            store.remove(f"{NEW}/{name}")
        else:
            flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
            store.write(f"{NEW}/{name}", {"flip": flipped, "cut": content[:at], "empty": b""}.get(how, content + b"}"))
        said = r"is not (a checkpoint|as it was written)" if name == META else rf"is damaged \({name}\)"
        with pytest.raises(CorruptedError, match=rf"place/{NEW}.*{said}.*: train again with force=train"):
            place.fetch(7, tmp_path / "copies")
        assert newest(place, tmp_path) == OLD
        assert place.scores() == ({3: None} if name == META else {3: None, 7: -1.5})
        put(place, training, 7, score=-1.5)
        assert newest(place, tmp_path) == NEW


def test_no_bit_of_the_json_part_can_change(place: Checkpoints, url: str) -> None:
    content = open_store(url).read(f"{NEW}/{META}")
    meant, equal = parse_meta(content, "here"), 0
    for bit in random.Random(0).sample(range(8 * len(content)), 2000):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert parse_meta(bytes(changed), "here") == meant  # 1e-3 and 1E-3
            equal += 1
        except CorruptedError:
            pass
    assert equal < 20


def test_a_part_of_one_is_none_and_is_swept(place: Checkpoints, training: Training, url: str, tmp_path: Path) -> None:
    """Its writer was killed after so many files, or while it removed an old one."""
    store = open_store(url)
    for arrived in range(1, 5):
        put(place, training, 9)
        for name in (META, *FILES[arrived:]):
            store.remove(f"step-00000009/{name}")
        assert place.steps() == [3, 7]
        assert 9 not in place.scores()
        assert newest(place, tmp_path) == NEW
        place.sweep()
        assert sorted(store.folders()) == [OLD, NEW]
        assert sorted(store.names(f"{NEW}/")) == [f"{NEW}/{name}" for name in (META, *FILES)]
    place.sweep()
    assert newest(place, tmp_path) == NEW


def test_what_is_no_checkpoint_is_left_alone(place: Checkpoints, url: str, tmp_path: Path) -> None:
    store = open_store(url)
    for name in ("step-8/checkpoint.json", "step-best/weights", "notes/step-00000009", "steps", "step-00000003.old/x"):
        store.write(name, b"mine")
    assert place.steps() == [3, 7]
    place.sweep()
    assert newest(place, tmp_path) == NEW
    assert store.read("notes/step-00000009") == store.read("step-best/weights") == store.read("steps") == b"mine"


def test_foreign_names_are_refused(place: Checkpoints, url: str, tmp_path: Path) -> None:
    """A sealed JSON part is no proof of good will: what it names could lie anywhere."""
    store = open_store(url)
    meta = parse_meta(store.read(f"{NEW}/{META}"), "here")
    digest = meta["files"]["history.json"]
    for name in ("../../outside", "/tmp/outside", "..", ".", "", "a/b", META, "model.safetensors/../x", "x"):
        for files in ({**meta["files"], name: digest}, {name: digest}, [name], None):
            store.write(f"{NEW}/{META}", json.dumps(seal({**meta, "files": files})).encode())
            with pytest.raises(CorruptedError, match="does not name the files of a checkpoint"):
                place.fetch(7, tmp_path / "copies")
    assert newest(place, tmp_path) == OLD
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"place", "copies"}
    assert not (tmp_path / "copies" / NEW).exists()


def test_a_checkpoint_that_is_replaced_meanwhile_is_no_missing_one(
    place: Checkpoints, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the copy, a training that keeps one has published a newer one and dropped what was seen."""
    look, moved = place.folders, []

    def folders() -> list[int]:
        seen = look()
        if not moved:
            moved.append(True)
            put(place, training, 9)
            for step in seen:
                place.drop(step)
        return seen

    monkeypatch.setattr(place, "folders", folders)
    assert newest(place, tmp_path) == "step-00000009"


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ({}, 2, set()),
        ({5: None}, 1, {5}),
        ({5: 1.0, 10: 0.0}, 1, {5, 10}),
        ({5: 1.0, 10: 1.0, 15: 0.5}, 1, {10, 15}),  # the newer of equals
        ({5: -3.0, 10: -1.0, 15: -2.0, 20: None}, 2, {10, 15, 20}),
        ({5: 9.0, 10: None, 15: None}, 2, {5, 10, 15}),
        ({15: 1.0, 5: 0.0, 10: 0.5}, 2, {10, 15}),
        ({5: 1.0, 10: 2.0}, 7, {5, 10}),
    ],
)
def test_kept_steps(scores: dict[int, float | None], keep: int, kept: set[int]) -> None:
    assert kept_steps(scores, keep) == kept
