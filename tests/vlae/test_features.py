"""The random features: sensitivity, determinism and shapes."""

import pytest
import torch
from torch.nn import functional as F

from vlae.features import RandomFeatures
from vlae.metrics.frechet import frechet_distance


def scenes(count: int, channels: int = 3, size: int = 24) -> torch.Tensor:
    """Return discs of one color on a background of a darker shade."""
    draw = torch.Generator().manual_seed(0)
    color = torch.rand(count, channels, 1, 1, generator=draw) * torch.tensor([1, 0.7, 0.4]).view(3, 1, 1)[:channels]
    center = torch.rand(count, 2, 1, 1, generator=draw) - 0.5
    radius = 0.3 + 0.3 * torch.rand(count, 1, 1, generator=draw)
    axis = torch.linspace(-1, 1, size)
    inside = (axis - center[:, 0]).square() + (axis[:, None] - center[:, 1]).square() < radius.square()
    return color * torch.where(inside[:, None], 1.0, 0.4)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    features = RandomFeatures()
    return float(frechet_distance(features(first).double().numpy(), features(second).double().numpy()))


def test_distance_detects_blur_and_mixed_colors() -> None:
    """Channels from different images keep each channel's distribution and break their joint distribution."""
    images = scenes(1600)
    first, second = images[::2], images[1::2]
    blurred = F.avg_pool2d(F.pad(second, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mixed = torch.stack([second.roll(shift, 0)[:, shift] for shift in range(3)], 1)
    baseline = distance(first, second)
    assert distance(first, blurred) > 10 * baseline
    assert distance(first, mixed) > 10 * baseline


def test_features_do_not_depend_on_the_random_state() -> None:
    images = scenes(4)
    before = torch.random.get_rng_state()
    features = RandomFeatures()(images)
    torch.manual_seed(1)
    torch.testing.assert_close(RandomFeatures()(images), features, rtol=0, atol=0)
    torch.random.set_rng_state(before)
    RandomFeatures()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert features.shape == (4, 102)
    assert not list(RandomFeatures().parameters())


def test_features_begin_with_the_color_moments() -> None:
    images = scenes(5)
    features = RandomFeatures()(images)
    torch.testing.assert_close(features[:, :3], images.mean((2, 3)))
    torch.testing.assert_close(features[:, 3:6], images.flatten(2).std(2, correction=0))


@pytest.mark.parametrize("size", [16, 17, 64])
def test_features_of_gray_images_equal_those_of_rgb(size: int) -> None:
    gray = scenes(3, channels=1, size=size)
    features = RandomFeatures()(gray)
    torch.testing.assert_close(features, RandomFeatures()(gray.repeat(1, 3, 1, 1)))
    assert features.isfinite().all()


def test_features_of_a_constant_image_are_its_mean() -> None:
    """The first layer responds to edges only, so all other features are 0 up to rounding."""
    features = RandomFeatures()(torch.full((1, 3, 20, 20), 0.7))
    torch.testing.assert_close(features[0, :3], torch.full((3,), 0.7))
    torch.testing.assert_close(features[0, 3:], torch.zeros(99), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 15, 32), (2, 2, 32, 32), (3, 32, 32)])
def test_features_of_invalid_shapes_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images"):
        RandomFeatures()(torch.zeros(shape))
