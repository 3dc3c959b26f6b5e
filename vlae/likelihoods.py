"""Observation models p(x|z): log-likelihoods of 8-bit images in nats.

Images are float32 in [0, 1] (k / 255 for grey level k). `logistic` gives the probability of
each grey level itself and `gaussian` the density per grey level, so both are measured in nats
of the 8-bit data, and -log p / (dimensions ln 2) is bits/dim.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 255.0
_LOG_FLOOR = -7.0  # a quarter of a grey level


class Likelihood(nn.Module):
    """p(x|location) with one scale per channel, learned unless it is fixed.

    Args:
        kind: "logistic" (discretised, as in PixelCNN++, Salimans et al. 2017, eq. 2), "gaussian"
            (with a learned scale this is sigma-VAE, Rybkin et al. 2021) or "bernoulli"
            (grey levels taken as probabilities; it has no scale).
        channels: image channels C.
        scale: fixed scale in units of the pixel range [0, 1], or None to learn it.
    """

    def __init__(self, kind: str, channels: int, scale: float | None) -> None:
        super().__init__()
        self.kind = kind
        start = torch.full((channels, 1, 1), math.log(0.1 if scale is None else scale))
        self.log_scale = nn.Parameter(start, requires_grad=scale is None and kind != "bernoulli")

    def _floored_log_scale(self) -> Tensor:
        """A learned scale cannot fall far below a grey level: a perfect fit must not send the density to infinity."""
        if not self.log_scale.requires_grad:
            return self.log_scale
        return F.softplus(self.log_scale - _LOG_FLOOR) + _LOG_FLOOR

    def mean(self, output: Tensor) -> Tensor:
        """Mean image in [0, 1] from the decoder's output (B, C, H, W)."""
        return torch.sigmoid(output.float())

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Negative log-likelihood per image, (B,), in nats.

        Args:
            output: decoder output before the sigmoid, (B, C, H, W).
            images: (B, C, H, W) float32 in [0, 1].
        """
        if self.kind == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(output.float(), images, reduction="none")
        elif self.kind == "gaussian":
            log_sigma = self._floored_log_scale()
            standardised = (images - self.mean(output)) * torch.exp(-log_sigma)
            losses = 0.5 * standardised.square() + log_sigma + 0.5 * math.log(2 * math.pi) + math.log(LEVELS)
        else:
            losses = _discretised_logistic_nll(images, self.mean(output), self._floored_log_scale())
        return losses.flatten(1).sum(1)


def _discretised_logistic_nll(images: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
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
