"""A small classifier of images: the space in which a change of meaning, not of pixels, is measured."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BATCH = 512  # images at a time where nothing is learnt
_WARMUP = 0.1  # of the steps


class Classifier(nn.Module):
    """Four strided convolutions with GroupNorm, the average over positions, one linear layer.

    Each image first loses its mean, and the norm after the first convolution its scale, so that light
    and contrast are not to be learnt.

    Args:
        channels: of the images.
        num_classes: M.
        width: channels of the first layer, a multiple of 4; the others have two, three and four times as many.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise([channels, width, 2 * width, 3 * width, 4 * width])):
            conv = nn.Conv2d(before, after, 3 if level else 4, stride=2, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(4, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_classes)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to log probabilities up to a constant per image, (B, M)."""
        centerd = images - images.mean((1, 2, 3), keepdim=True)
        logits: Tensor = self.head(self.features(centerd).mean((2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to probabilities (B, M), each row summing to 1."""
        return self.logits(images).softmax(1)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    steps: int = 600,
    batch_size: int = 96,
    learning_rate: float = 4e-3,
) -> Classifier:
    """A classifier of these images, by AdamW with a cosine on random batches.

    Plain float32 on purpose: layers this small are no faster in bfloat16 or channels-last.

    Args:
        images: (N, C, H, W) uint8; they stay where they are, and the training runs there.
        labels: (N,) int64, 0..M-1.
        seed: of weights and batches; the global random state is left as it was.
        steps: updates.
        batch_size: images per update.
        learning_rate: the highest, after a tenth of the steps.

    Returns:
        The classifier in evaluation mode, no gradients for its weights.

    Raises:
        ValueError: images and labels do not fit.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"uint8 images (N, C, H, W) and labels (N,) wanted, not {images.shape} and {labels.shape}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' too
        model = Classifier(images.shape[1], int(labels.max()) + 1)
    model, generator = model.to(images.device), torch.Generator().manual_seed(seed)
    batches = (torch.randint(len(images), (batch_size,), generator=generator) for _ in range(steps))
    _fit(model, ((images[batch], labels[batch]) for batch in batches), steps, learning_rate)
    return model.eval().requires_grad_(requires_grad=False)


def _fit(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2, fused=True)
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(step / steps)
        loss = F.cross_entropy(model.logits(images.float() / 255), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose likeliest class is their label (N,), in [0, 1]."""
    parts = zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)
    right = [int((classify(part.float() / 255).argmax(1) == truth).sum()) for part, truth in parts]
    return sum(right) / len(images)


def _rate(progress: float) -> float:
    """Linear rise, then half a cosine to zero; progress and result in [0, 1]."""
    if progress < _WARMUP:
        return (progress + 1e-2) / (_WARMUP + 1e-2)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))
