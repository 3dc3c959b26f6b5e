"""What a rung does to the image, as numbers: the blog's figure of resampled rungs, measured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents, eval_batch_size

Classify = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> class probabilities (B, M)


@dataclass(frozen=True)
class Effects:
    """Total effect of each rung, bottom first: the share of the variance that resampling it alone brings.

    Shares lie in [0, 1] up to sampling error and add up to 1 or more; where nothing varies they are NaN.
    """

    pixels: list[float]  # of the variance of the image
    color: list[float]  # of the variance of the mean color
    mean_color_share: list[float]  # of the rung's effect on the image, the part that is a shift of mean color
    classifier: list[float] | None  # of the variance of the class probabilities; None without a classifier
    flip_rate: list[float] | None  # how often the likeliest class changes, in [0, 1]


@torch.no_grad()
def total_effects(
    model: HierarchicalModel, count: int, generator: torch.Generator, classify: Classify | None = None
) -> Effects:
    """S_l = E[(f(e) - f(e with rung l redrawn))^2] / (2 Var f) for f = pixels, mean color, class probabilities.

    The total effect of Sobol (Homma, Saltelli 1996) by Jansen's estimator (1999), on `count` pairs of prior
    samples per rung. e is the standard normal noise of all rungs: in a stack, what hangs on rung l from
    below changes with it.

    Args:
        model: any hierarchical model, in evaluation mode.
        count: pairs, 2 or more.
        generator: of the noise, on the model's device.
        classify: images to class probabilities, such as `vlae.classifier.train_classifier` makes.

    Raises:
        ValueError: fewer than two pairs.
    """
    if count < 2:
        raise ValueError(f"a variance takes 2 pairs or more, not {count}")
    base, other = model.noise(count, generator), model.noise(count, generator)
    spaces = {name: _Space(len(base)) for name in ("pixels", "color", "classifier")}
    flips = [0] * len(base)
    size = eval_batch_size(base[0].device)
    for start in range(0, count, size):
        here, there = ([part[start : start + size] for part in noise] for noise in (base, other))
        original = _views(model, here, classify)
        for name, values in original.items():
            spaces[name].add(values)
        for rung in range(len(base)):
            changed = _views(model, [*here[:rung], there[rung], *here[rung + 1 :]], classify)
            for name, values in changed.items():
                spaces[name].changes[rung] += (values - original[name]).square().mean(1).sum().item()
            if classify is not None:
                flips[rung] += int((changed["classifier"].argmax(1) != original["classifier"].argmax(1)).sum())
    return _effects(spaces, None if classify is None else [flip / count for flip in flips])


def _effects(spaces: dict[str, "_Space"], flip_rate: list[float] | None) -> Effects:
    pixels, color = spaces["pixels"], spaces["color"]
    return Effects(
        pixels.shares(),
        color.shares(),
        [_ratio(part, whole) for part, whole in zip(color.changes, pixels.changes, strict=True)],
        None if flip_rate is None else spaces["classifier"].shares(),
        flip_rate,
    )


def _views(model: HierarchicalModel, noise: Latents, classify: Classify | None) -> dict[str, Tensor]:
    """f(e) in each space, (B, F) float64."""
    images = model.mean_image(model.prior(noise))
    views = {"pixels": images.flatten(1).double(), "color": images.double().mean((2, 3))}
    if classify is not None:
        views["classifier"] = classify(images).double()
    return views


class _Space:
    """Sums over the chunks: of f and its square for the variance, of the squared change that each rung brings."""

    def __init__(self, rungs: int) -> None:
        self.count = 0
        self.changes = [0.0] * rungs

    def add(self, values: Tensor) -> None:
        """Another chunk of f(e), (B, F)."""
        if not self.count:
            # Sums about a value of f itself: no digits cancel, and what never varies has a variance of exactly 0.
            self._origin = values[:1]
            self._sum = torch.zeros_like(values[0])
            self._squares = torch.zeros_like(values[0])
        shifted = values - self._origin
        self.count += len(values)
        self._sum += shifted.sum(0)
        self._squares += shifted.square().sum(0)

    def shares(self) -> list[float]:
        """S_l of each rung; both sums are means over the F values."""
        variance = ((self._squares - self._sum.square() / self.count) / (self.count - 1)).mean().item()
        return [_ratio(change / self.count / 2, variance) for change in self.changes]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
