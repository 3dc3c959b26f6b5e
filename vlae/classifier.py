"""A small image classifier, for measuring changes of an image's class instead of its pixels."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EVAL_BATCH_SIZE = 512
_WARMUP = 0.1  # fraction of the steps


class Classifier(nn.Module):
    """Four strided convolutions with GroupNorm, average pooling and one linear layer.

    Each image loses its mean before the first convolution and its scale in the norm after it, so the network need not
    learn to ignore brightness and contrast.

    Args:
        channels: Image channels C.
        num_classes: Number of classes M.
        width: Channels of the first layer, a multiple of 4; the other layers have two, three and four times as many.
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
        """Return unnormalized log probabilities (B, M) of images (B, C, H, W) in [0, 1]."""
        centered = images - images.mean((1, 2, 3), keepdim=True)
        logits: Tensor = self.head(self.features(centered).mean((2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, M), each row summing to 1, of images (B, C, H, W) in [0, 1]."""
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
    """Return a classifier in evaluation mode, without gradients, trained by AdamW with a warm-up and a cosine decay.

    Training is in float32, because layers this small are no faster in bfloat16 or channels-last.

    Args:
        images: Images (N, C, H, W) uint8; training runs on their device.
        labels: Classes (N,) int64, 0..M-1.
        seed: Random seed for weights and batches; the global random state is not changed.
        steps: Number of updates.
        batch_size: Images per update.
        learning_rate: Largest learning rate, reached after a tenth of the steps.

    Raises:
        ValueError: The shapes or types of images and labels do not fit.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"images, labels: invalid shapes {tuple(images.shape)} {images.dtype} and {tuple(labels.shape)}. "
            "Pass uint8 images (N, C, H, W) and labels (N,) with N > 0."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # because torch.manual_seed would also seed the GPUs
        model = Classifier(images.shape[1], int(labels.max()) + 1)
    model, generator = model.to(images.device), torch.Generator().manual_seed(seed)

    def rate(step: int) -> float:
        progress = step / steps
        if progress < _WARMUP:
            return (progress + 1e-2) / (_WARMUP + 1e-2)
        return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2, fused=True)
    for step in range(steps):
        batch = torch.randint(len(images), (batch_size,), generator=generator)
        optimizer.param_groups[0]["lr"] = learning_rate * rate(step)
        loss = F.cross_entropy(model.logits(images[batch].float() / 255), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Return the fraction, in [0, 1], of images whose most probable class is their label.

    Args:
        classify: Function from images (B, C, H, W) in [0, 1] to class probabilities or logits (B, M).
        images: Images (N, C, H, W) uint8.
        labels: Classes (N,) int64, 0..M-1.
    """
    batches = zip(torch.split(images, _EVAL_BATCH_SIZE), torch.split(labels, _EVAL_BATCH_SIZE), strict=True)
    correct = [int((classify(batch.float() / 255).argmax(1) == classes).sum()) for batch, classes in batches]
    return sum(correct) / len(images)
