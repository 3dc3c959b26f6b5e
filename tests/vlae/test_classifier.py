"""The classifier: accuracy, determinism, and the global random state."""

import pytest
import torch

from vlae.classifier import Classifier, accuracy, train_classifier


def stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy horizontal, vertical or diagonal stripes, whose brightness and contrast carry no class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    axis = torch.arange(16) * 1.3
    waves = torch.stack([axis[:, None] + 0 * axis, axis + 0 * axis[:, None], 0.7 * (axis + axis[:, None])])
    phase, light, contrast = torch.rand(3, count, 1, 1, 1, generator=draw)
    image = 0.3 + 0.4 * light + (0.05 + 0.2 * contrast) * torch.sin(waves[labels][:, None] + 6.3 * phase)
    noisy = image + 0.05 * torch.randn(count, 1, 16, 16, generator=draw)
    return (noisy.clamp(0, 1) * 255).round().byte(), labels


def test_train_classifier_generalizes_to_new_images() -> None:
    model = train_classifier(*stripes(600, seed=0), seed=0, steps=60)
    assert accuracy(model, *stripes(600, seed=1)) > 0.9
    assert accuracy(Classifier(1, 3).eval(), *stripes(600, seed=1)) < 0.6
    probabilities = model(stripes(5, seed=1)[0] / 255)
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_classifier_ignores_brightness_and_contrast() -> None:
    torch.manual_seed(0)
    model = Classifier(3, 4)
    images = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    logits = model.logits(images)
    torch.testing.assert_close(model.logits(0.6 + 0.2 * images), logits, atol=0.01, rtol=0)
    assert (logits.roll(1, 0) - logits).abs().max() > 0.1


def test_train_classifier_depends_on_the_seed_alone() -> None:
    data = stripes(100, seed=0)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = train_classifier(*data, seed=3, steps=3).head.weight
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(train_classifier(*data, seed=3, steps=3).head.weight, first)
    assert not torch.equal(train_classifier(*data, seed=4, steps=3).head.weight, first)


def test_accuracy_of_a_known_classifier() -> None:
    labels = torch.tensor([0, 1, 1, 0] * 300)
    images = torch.zeros(1200, 1, 2, 2, dtype=torch.uint8)
    images[::2] = 255
    assert accuracy(lambda batch: torch.stack([1 - batch[:, 0, 0, 0], batch[:, 0, 0, 0]], 1), images, labels) == 0.5
    assert accuracy(lambda batch: torch.eye(2)[torch.zeros(len(batch), dtype=torch.long)], images[:3], labels[:3]) == (
        pytest.approx(1 / 3)
    )


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(4, 1, 16, 16), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(0, 1, 16, 16, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_train_classifier_invalid_shapes_raise(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images, labels"):
        train_classifier(images, labels, seed=0)
