"""Observation models p(x|z): log-likelihoods of 8-bit images in nats.

Images are float32 in [0, 1] (k / 255 for gray level k). `logistic` gives the probability of
each gray level itself, `gaussian` and `laplace` the density per gray level, so all are measured in nats
of the 8-bit data, and -log p / (dimensions ln 2) is bits/dim.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 255.0
_LOG_FLOOR = -7.0  # a quarter of a gray level
_MEMORY = 0.99  # of the running optimal scale, per step

Kind = Literal["logistic", "gaussian", "laplace", "bernoulli"]
Scale = float | Literal["learned", "optimal"]


class Likelihood(nn.Module):
    """p(x|location) with one scale per channel.

    Args:
        kind: "logistic" (discretized, as in PixelCNN++, Salimans et al. 2017, eq. 2), "gaussian", "laplace"
            (the L1 loss of the VLAE's reference code) or "bernoulli" (gray levels taken as probabilities;
            it has no scale).
        channels: image channels C.
        scale: in units of the pixel range [0, 1]. A number: fixed. "learned": a parameter. "optimal": that
            which makes the batch most likely (sigma-VAE, Rybkin et al. 2021, section 3.2); evaluation takes
            the running geometric mean of training. Of a Gaussian or a Laplace only.

    Raises:
        ValueError: an optimal scale of another kind.
    """

    log_scale: Tensor

    def __init__(self, kind: Kind, channels: int, scale: Scale) -> None:
        super().__init__()
        if scale == "optimal" and kind not in ("gaussian", "laplace"):
            raise ValueError(f"scale=optimal needs a gaussian or laplace likelihood, not {kind}")
        self.kind, self.optimal = kind, scale == "optimal"
        fixed = isinstance(scale, float | int)
        start = torch.full((channels, 1, 1), math.log(scale if isinstance(scale, float | int) else 0.1))
        self.log_scale = nn.Parameter(start, requires_grad=not fixed and not self.optimal and kind != "bernoulli")

    def _log_scale(self, error: Tensor) -> Tensor:
        """The scale's logarithm (C, 1, 1), given absolute errors (B, C, H, W).

        It cannot fall far below a gray level: a perfect fit must not send the density to infinity. At the optimum
        the likelihood is flat in the scale, so the gradient of a scale that is found there needs not be followed.
        """
        if self.log_scale.requires_grad:
            return F.softplus(self.log_scale - _LOG_FLOOR) + _LOG_FLOOR
        if not (self.optimal and self.training):
            return self.log_scale
        with torch.no_grad():
            power = error.square() if self.kind == "gaussian" else error
            mean = torch.log(power.mean((0, 2, 3)).clamp_min(1e-12)).view_as(self.log_scale)
            found = (mean / 2 if self.kind == "gaussian" else mean).clamp_min(_LOG_FLOOR)
            known = torch.where(found.isfinite(), found, self.log_scale)  # a step that fails must leave no trace
            self.log_scale.lerp_(known, 1 - _MEMORY)
        return found

    def mean(self, output: Tensor) -> Tensor:
        """Location in [0, 1] from the decoder's output (B, C, H, W): the mean, or a Laplace's median."""
        return torch.sigmoid(output if output.dtype == torch.float64 else output.float())

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Negative log-likelihood per image, (B,), in nats.

        Args:
            output: decoder output before the sigmoid, (B, C, H, W).
            images: (B, C, H, W) float32 in [0, 1].
        """
        if self.kind == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(output.to(images.dtype), images, reduction="none")
            return losses.flatten(1).sum(1)
        location = self.mean(output)
        if self.kind == "logistic":
            return _discretized_logistic_nll(images, location, self._log_scale(location)).flatten(1).sum(1)
        error = (images - location).abs()
        log_scale = self._log_scale(error)
        scaled = error * torch.exp(-log_scale)
        if self.kind == "gaussian":
            losses = 0.5 * scaled.square() + log_scale + 0.5 * math.log(2 * math.pi)
        else:
            losses = scaled + log_scale + math.log(2)
        return (losses + math.log(LEVELS)).flatten(1).sum(1)


def _discretized_logistic_nll(images: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """-log[s(a) - s(b)] at the bin edges a > b, with the outer bins open.

    s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) needs no difference of nearly equal numbers, so the
    tails stay exact, however wrong the location is.
    """
    inverse_scale = torch.exp(-log_scale)
    half_bin = 0.5 / LEVELS
    upper = F.logsigmoid((images - location + half_bin) * inverse_scale)
    lower = F.logsigmoid((location - images + half_bin) * inverse_scale)
    inside = torch.log(-torch.expm1(-inverse_scale / LEVELS))
    log_prob = torch.where(images >= 1, lower, torch.where(images <= 0, upper, upper + lower + inside))
    return -log_prob
