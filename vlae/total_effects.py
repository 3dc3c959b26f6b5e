"""Total effect of each rung on the image: the fraction of an output's variance that resampling one rung causes.

References:
    Homma, Saltelli: "Importance Measures in Global Sensitivity Analysis of Nonlinear Models", RESS 1996.
    Jansen: "Analysis of Variance Designs for Model Output", Computer Physics Communications 1999 (estimator).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlae.models.base import HierarchicalModel, Latents, eval_batch_size

Classify = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> class probabilities (B, M)


@dataclass(frozen=True)
class TotalEffects:
    """Total effect of each rung on several outputs, bottom first.

    Total effects lie in [0, 1] up to sampling error and add up to 1 or more. They are NaN for an output that never
    varies.

    Attributes:
        pixels: Fraction of the image's variance.
        color: Fraction of the variance of the mean color.
        mean_color_share: Fraction of the rung's effect on the image that is a shift of the mean color.
        classifier: Fraction of the variance of the class probabilities; None without a classifier.
        flip_rate: Probability in [0, 1] that the most probable class changes; None without a classifier.
    """

    pixels: list[float]
    color: list[float]
    mean_color_share: list[float]
    classifier: list[float] | None
    flip_rate: list[float] | None


@torch.no_grad()
def total_effects(
    model: HierarchicalModel, count: int, generator: torch.Generator, classify: Classify | None = None
) -> TotalEffects:
    """Return S_l = E[(f(e) - f(e with rung l resampled))^2] / (2 Var f) of each rung l.

    f is one of: pixels, mean color, class probabilities. e is the standard normal noise of all rungs, so in a stacked
    VAE the rungs that depend on rung l change with it. The estimator is Jansen's, on `count` pairs of prior samples
    per rung.

    Args:
        model: Any hierarchical model in evaluation mode.
        count: Number of pairs, at least 2.
        generator: Random generator of the noise, on the model's device.
        classify: Function from images to class probabilities, such as the result of `vlae.classifier.train_classifier`.

    Raises:
        ValueError: `count` is smaller than 2.
    """
    if count < 2:
        raise ValueError(f"count: a variance needs at least 2 pairs, got {count}. Pass a larger count.")
    base, other = model.noise(count, generator), model.noise(count, generator)
    rungs, size = len(base), eval_batch_size(base[0].device)
    sums = {name: _OutputSums(rungs) for name in ("pixels", "color", "classifier")}
    flips = [0] * rungs
    for start in range(0, count, size):
        chunk, resampled = ([noise[start : start + size] for noise in rung_noise] for rung_noise in (base, other))
        original = _outputs(model, chunk, classify)
        for name, values in original.items():
            sums[name].add(values)
        for rung in range(rungs):
            changed = _outputs(model, [*chunk[:rung], resampled[rung], *chunk[rung + 1 :]], classify)
            for name, values in changed.items():
                sums[name].changes[rung] += (values - original[name]).square().mean(1).sum().item()
            if classify is not None:
                flips[rung] += int((changed["classifier"].argmax(1) != original["classifier"].argmax(1)).sum())
    return TotalEffects(
        pixels=sums["pixels"].total_effects(),
        color=sums["color"].total_effects(),
        mean_color_share=list(map(_fraction, sums["color"].changes, sums["pixels"].changes)),
        classifier=None if classify is None else sums["classifier"].total_effects(),
        flip_rate=None if classify is None else [flip / count for flip in flips],
    )


def _outputs(model: HierarchicalModel, noise: Latents, classify: Classify | None) -> dict[str, Tensor]:
    """Return every output f(noise), (B, F) float64."""
    images = model.mean_image(model.prior(noise))
    outputs = {"pixels": images.flatten(1).double(), "color": images.double().mean((2, 3))}
    if classify is not None:
        outputs["classifier"] = classify(images).double()
    return outputs


class _OutputSums:
    """Sums over chunks of an output f (B, F), for its variance, and of its squared change by each rung."""

    def __init__(self, rungs: int) -> None:
        self.count = 0
        self.changes = [0.0] * rungs

    def add(self, values: Tensor) -> None:
        if not self.count:
            # Sums about one value of f, because then no digits cancel and a constant has a variance of exactly 0.
            self._origin = values[:1]
            self._sum = torch.zeros_like(values[0])
            self._squares = torch.zeros_like(values[0])
        shifted = values - self._origin
        self.count += len(values)
        self._sum += shifted.sum(0)
        self._squares += shifted.square().sum(0)

    def total_effects(self) -> list[float]:
        variance = ((self._squares - self._sum.square() / self.count) / (self.count - 1)).mean().item()
        return [_fraction(change / self.count / 2, variance) for change in self.changes]


def _fraction(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
