"""Published file formats through the whole pipeline. The files are small, but their formats are the real ones."""

import io
import os
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import SMALL, result_of, run, small
from mlflow import MlflowClient
from PIL import Image
from scipy.io import savemat

from jobs.data.sources.mnist import DEBIAN_FASHION_MNIST


def write_svhn(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 300), ("test", 100)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = rng.integers(1, 11, (count, 1), dtype=np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


def write_celeba(folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{index:06d}.jpg" for index in range(1, 241)]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for name in names:
            picture = io.BytesIO()
            pixels = np.repeat(rng.integers(0, 256, (109, 1, 3), dtype=np.uint8), 2, axis=0)
            Image.fromarray(np.repeat(pixels, 178, axis=1)).save(picture, "JPEG")
            archive.writestr(f"img_align_celeba/{name}", picture.getvalue())
    attributes = [f"Attribute_{index}" for index in range(40)]
    rows = [f"{name} " + " ".join(f"{sign:2d}" for sign in rng.choice([-1, 1], 40)) for name in names]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), " ".join(attributes) + " ", *rows]) + "\n")
    splits = [f"{name} {0 if index < 180 else 1 if index < 200 else 2}" for index, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")


def write_dsprites(folder: Path) -> None:
    rng = np.random.default_rng(0)
    classes = np.array(list(product([0], range(3), range(3), range(4), range(4), range(4))), np.int64)
    tables = [[1.0], [1.0, 2.0, 3.0], [0.5, 0.75, 1.0], np.arange(4) / 4, np.arange(4) / 3, np.arange(4) / 3]
    values = np.stack([np.asarray(table)[column] for table, column in zip(tables, classes.T, strict=True)], 1)
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        imgs=rng.integers(0, 2, (len(classes), 64, 64), dtype=np.uint8),
        latents_classes=classes,
        latents_values=values,
        metadata=np.array({"a pickle": "that must never be loaded"}, dtype=object),
    )


def write_shapes3d(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [np.arange(3) / 10, np.arange(3) / 10, np.arange(3) / 10, [0.75, 1.25], [0.0, 1.0], [-30.0, 0.0, 30.0]]
    labels = np.array(list(product(*tables)), np.float64)
    with h5py.File(folder / "3dshapes.h5", "w") as file:
        images = rng.integers(0, 256, (len(labels), 64, 64, 3), dtype=np.uint8)
        file.create_dataset("images", data=images, chunks=(50, 64, 64, 3), compression="gzip")
        file.create_dataset("labels", data=labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "factor", "samples"),
    [
        ("svhn", write_svhn, "digit", 400),
        ("celeba", write_celeba, "Attribute_39", 240),
        ("dsprites", write_dsprites, "shape", 576),
        ("shapes3d", write_shapes3d, "orientation", 324),
    ],
)
def test_published_files_go_through_all_stages(
    tmp_path: Path, name: str, write: Callable[[Path], None], factor: str, samples: int
) -> None:
    folder = tmp_path / "datasets" / name
    folder.mkdir(parents=True)
    write(folder)
    drawn = ("data.num_images", "data.image_size")
    overrides = small(data__samples_per_task=100, train__steps=6)
    overrides = [override for override in overrides if not override.startswith(drawn)]
    process = run([*overrides, f"data={name}"], tmp_path)
    result = result_of(process)
    assert set(result["stages"].values()) == {"done"}
    assert f"information/rung_0/{factor}" in result["metrics"]
    counts = process.stderr.split("shard    done")[1].split(";")[0]
    assert sum(int(text) for text in counts.replace(",", "").split() if text.isdecimal()) == samples
    assert ("note: " in process.stderr) == (name != "dsprites")  # a hash mismatch where the published hash is known
    # Without its files, but with its shards, every stage is still complete.
    folder.rename(tmp_path / "away")
    assert set(result_of(run([*overrides, f"data={name}"], tmp_path))["stages"].values()) == {"skipped"}


@pytest.mark.parametrize("name", ["svhn", "celeba", "dsprites", "shapes3d", "mpi3d", "cars3d", "smallnorb"])
def test_missing_files_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    process = run([f"data={name}", "stage=shard"], tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert f"data.root={tmp_path / 'datasets' / name}" in line
    assert "http" in line


@pytest.mark.slow
def test_image_folder_goes_through_all_stages(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["file,kind,serial"]
    for index in range(120):
        name = f"{'cats' if index % 2 else 'dogs'}/{index}.png"
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + index % 7, 24, 3), dtype=np.uint8)).save(path)
        rows.append(f"{name},{path.parent.name},{index}")
    (tmp_path / "pictures" / "factors.csv").write_text("\n".join(rows))
    settings = {key: value for key, value in SMALL.items() if key not in ("data.num_images", "data.samples_per_task")}
    overrides = [f"{key}={value}" for key, value in settings.items()] + ["data=images", "data.root=pictures"]
    overrides.append("data.test_fraction=0.3")
    process = run(overrides, tmp_path)
    first = result_of(process)
    assert process.stderr.count("note: factor serial:") == 2  # at the stages shard and evaluate
    assert "mig/serial" not in first["metrics"]
    assert "information/rung_2/kind" in first["metrics"]
    assert "mig_sup" not in first["metrics"]  # a gap needs two factors
    overrides.append("data.factors=kind,serial")
    chosen = result_of(run(overrides, tmp_path))
    assert chosen["stages"] == {"shard": "skipped", "train": "skipped", "evaluate": "done"}
    assert "mig/serial" in chosen["metrics"]
    # Without the pictures the shards are still used; with another picture they are not the shards of the folder.
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    assert set(result_of(run(overrides, tmp_path))["stages"].values()) == {"skipped"}


@pytest.mark.slow
def test_broken_images_are_named_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(60):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "pictures" / f"{index}.png")
    for index in range(0, 60, 5):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(b"no picture")
    settings = {key: value for key, value in SMALL.items() if key != "data.num_images"}
    settings |= {"data.samples_per_task": 20, "train.steps": 4}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    overrides += ["data=images", "data.root=pictures", "stage=shard,train"]
    broken = run(overrides, tmp_path)
    assert broken.returncode == 1
    names = "12 images: 0.png, 10.png, 15.png, 20.png, 25.png, 30.png, 35.png, 40.png, 45.png, 5.png and 2 more"
    assert f"cannot decode {names}" in broken.stderr.splitlines()[-1]
    assert list(tmp_path.glob("ws/shards/*/.partial-*")) == []
    assert list(tmp_path.glob("ws/shards/*/manifest.json")) == []
    skipped = run([*overrides, "data.on_error=skip"], tmp_path)
    assert f"note: skipped {names}" in skipped.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    assert client.get_run(result_of(skipped)["run_id"]).data.tags["data.skipped"] == names


@pytest.mark.slow
@pytest.mark.skipif(
    not (DEBIAN_FASHION_MNIST / "t10k-images-idx3-ubyte.gz").exists() and "CI" not in os.environ,
    reason="Debian's dataset-fashion-mnist is not installed",
)
@pytest.mark.parametrize("model", ["vlae", "hvae"])
def test_real_fashion_mnist_goes_through_all_stages(tmp_path: Path, model: str) -> None:
    settings = {key: value for key, value in SMALL.items() if not key.startswith("data.")}
    overrides = [f"{key}={value}" for key, value in settings.items()] + ["data=fashion_mnist", f"model={model}"]
    result = result_of(run(overrides, tmp_path))
    assert set(result["stages"].values()) == {"done"}
    assert 0 < result["metrics"]["bits_per_dim"] < 8.5
    assert result["metrics"]["mig"] >= 0
