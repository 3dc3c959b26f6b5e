"""Test MPI3D with small files of its format."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jobs.data.sources.base import Factor
from jobs.data.sources.mpi3d import FACTORS, Mpi3d
from jobs.errors import UserError

SMALL = (
    Factor("object_color", ("white", "green")),
    Factor("object_size", ("small", "large")),
    Factor("axis", (0, 1, 2)),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("variant", ["toy", "realistic", "real"])
def test_mpi3d_content_equals_file(tmp_path: Path, variant: str, save) -> None:
    save(tmp_path / f"mpi3d_{variant}.npz", images=IMAGES)
    source = Mpi3d(tmp_path, variant, SMALL)
    assert (source.num_samples, source.image_shape) == (12, (64, 64, 3))
    assert source.sequential == (save is np.savez_compressed)
    samples = list(source.read(0, 12))
    assert len({sample.key for sample in samples}) == 12
    for sample, image, indices in zip(samples, IMAGES, itertools.product(range(2), range(2), range(3)), strict=True):
        np.testing.assert_array_equal(sample.image, image)
        assert list(sample.factors.items()) == list(zip(("object_color", "object_size", "axis"), indices, strict=True))
    joined = [sample for start in (0, 5, 10) for sample in source.read(start, min(start + 5, 12))]
    assert [(sample.key, sample.factors) for sample in joined] == [(sample.key, sample.factors) for sample in samples]
    assert all(np.array_equal(sample.image, image) for sample, image in zip(joined, IMAGES, strict=True))


def test_mpi3d_published_factors_have_all_combinations() -> None:
    assert [len(factor.values) for factor in FACTORS] == [6, 6, 2, 3, 3, 40, 40]
    assert np.prod([len(factor.values) for factor in FACTORS]) == 1_036_800


def test_mpi3d_other_number_of_images_error_names_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "mpi3d_toy.npz", images=IMAGES)
    with pytest.raises(UserError, match=r"mpi3d_toy\.npz: 12 .*1,036,800"):
        Mpi3d(tmp_path, "toy").validate()


def test_mpi3d_warnings_and_fingerprint_follow_file(tmp_path: Path) -> None:
    for variant in ("toy", "real"):
        np.savez(tmp_path / f"mpi3d_{variant}.npz", images=IMAGES)
    [warning] = Mpi3d(tmp_path, "toy", SMALL).validate()
    assert "mpi3d_toy.npz: md5" in warning
    prints = {Mpi3d(tmp_path, variant, SMALL).fingerprint for variant in ("toy", "toy", "real")}
    np.savez(tmp_path / "mpi3d_toy.npz", images=IMAGES[::-1])
    assert len(prints | {Mpi3d(tmp_path, "toy", SMALL).fingerprint}) == 3


def test_mpi3d_missing_file_error_names_file_and_root(tmp_path: Path) -> None:
    np.savez(tmp_path / "mpi3d_toy.npz", images=IMAGES)
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}.*mpi3d_real\.npz"):
        Mpi3d(tmp_path, "real").validate()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mpi3d_damaged_file_error_names_it(tmp_path: Path, save) -> None:
    path = tmp_path / "mpi3d_toy.npz"
    save(path, images=IMAGES)
    intact = path.read_bytes()
    path.write_bytes(intact[:-100])
    with pytest.raises(UserError, match=r"mpi3d_toy\.npz"):
        Mpi3d(tmp_path, "toy", SMALL).validate()
    # The directory at the end is intact, but 50,000 bytes before it are gone.
    path.write_bytes(intact[:50_000] + intact[100_000:])
    with pytest.raises(UserError, match=r"mpi3d_toy\.npz"):
        list(Mpi3d(tmp_path, "toy", SMALL).read(0, 12))


def test_mpi3d_wrong_structure_error_names_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "mpi3d_toy.npz", images=IMAGES[..., :1])
    with pytest.raises(UserError, match=r"mpi3d_toy\.npz: .*images .*\(12, 64, 64, 1\)"):
        Mpi3d(tmp_path, "toy", SMALL).validate()
    np.savez(tmp_path / "mpi3d_toy.npz", imgs=IMAGES)
    with pytest.raises(UserError, match=r"mpi3d_toy\.npz: .*images"):
        Mpi3d(tmp_path, "toy", SMALL).validate()
