"""Observation models p(x|z): log-likelihoods of 8-bit images in nats.

Images are float32 in [0, 1], k / 255 for gray level k. `logistic` is the probability of each gray level; `gaussian`
and `laplace` are densities per gray level. All are therefore in nats of the 8-bit data, and -log2 p / (C H W) is in
bits/dim.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 255.0
_MIN_LOG_SCALE = -7.0  # a quarter of a gray level
_DECAY = 0.99  # of the moving average of the optimal scale, per step

Kind = Literal["logistic", "gaussian", "laplace", "bernoulli"]
Scale = float | Literal["learned", "optimal"]


class Likelihood(nn.Module):
    """Likelihood p(x|location) of images with one scale per channel.

    Args:
        kind: "logistic" (discretized logistic of PixelCNN++, eq. 2), "gaussian", "laplace" (the L1 loss of the VLAE's
            released code) or "bernoulli" (gray levels as probabilities, without a scale).
        channels: Image channels C.
        scale: Scale in units of the pixel range [0, 1]. A number is fixed; "learned" is a parameter; "optimal"
            (Gaussian and Laplace only) maximizes the likelihood of each training batch (sigma-VAE, section 3.2), and
            evaluation uses the moving geometric mean of the training batches.

    Attributes:
        log_scale: (C, 1, 1), natural logarithm of the scale; a learned one before its soft lower bound of a quarter
            gray level.

    Raises:
        ValueError: An optimal scale of a logistic or a Bernoulli.

    References:
        Salimans, Karpathy, Chen, Kingma: "PixelCNN++", ICLR 2017, arXiv:1701.05517.
        Rybkin, Daniilidis, Levine: "Simple and Effective VAE Training with Calibrated Decoders", ICML 2021,
        arXiv:2006.13202.

    Example:
        >>> likelihood = Likelihood("gaussian", channels=1, scale=0.1)
        >>> likelihood.nll(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.5)).shape
        torch.Size([2])
    """

    log_scale: Tensor

    def __init__(self, kind: Kind, channels: int, scale: Scale) -> None:
        super().__init__()
        if scale == "optimal" and kind not in ("gaussian", "laplace"):
            raise ValueError(f"scale=optimal: not available for a {kind} likelihood. Use gaussian or laplace.")
        self.kind, self.optimal = kind, scale == "optimal"
        initial = torch.full((channels, 1, 1), math.log(0.1 if isinstance(scale, str) else scale))
        self.log_scale = nn.Parameter(initial, requires_grad=scale == "learned" and kind != "bernoulli")

    def _bounded_log_scale(self, error: Tensor) -> Tensor:
        """Return the scale's logarithm (C, 1, 1) for absolute errors (B, C, H, W).

        The scale has a lower bound, because a perfect fit would send the density to infinity. The optimal scale has no
        gradient, because the likelihood is flat in the scale at its optimum.
        """
        if self.log_scale.requires_grad:
            return F.softplus(self.log_scale - _MIN_LOG_SCALE) + _MIN_LOG_SCALE
        if not (self.optimal and self.training):
            return self.log_scale
        with torch.no_grad():
            moment = error.square() if self.kind == "gaussian" else error
            log_moment = torch.log(moment.mean((0, 2, 3)).clamp_min(1e-12)).view_as(self.log_scale)
            optimum = (log_moment / 2 if self.kind == "gaussian" else log_moment).clamp_min(_MIN_LOG_SCALE)
            # A step that is not finite is skipped, so it must not change the moving average.
            self.log_scale.lerp_(torch.where(optimum.isfinite(), optimum, self.log_scale), 1 - _DECAY)
        return optimum

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of p(x|z), or the median of a Laplace, (B, C, H, W) in [0, 1].

        Args:
            output: Decoder output (B, C, H, W) before the sigmoid; the result is float32, or float64 from float64.
        """
        return torch.sigmoid(output if output.dtype == torch.float64 else output.float())

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Return the negative log-likelihood -log p(x|z) of each image, (B,), in nats.

        Args:
            output: Decoder output (B, C, H, W) before the sigmoid.
            images: Images (B, C, H, W) float32 in [0, 1].
        """
        if self.kind == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(output.to(images.dtype), images, reduction="none")
            return losses.flatten(1).sum(1)
        location = self.mean(output)
        if self.kind == "logistic":
            return _discretized_logistic_nll(images, location, self._bounded_log_scale(location)).flatten(1).sum(1)
        error = (images - location).abs()
        log_scale = self._bounded_log_scale(error)
        scaled = error * torch.exp(-log_scale)
        if self.kind == "gaussian":
            losses = 0.5 * scaled.square() + log_scale + 0.5 * math.log(2 * math.pi)
        else:
            losses = scaled + log_scale + math.log(2)
        return (losses + math.log(LEVELS)).flatten(1).sum(1)


def _discretized_logistic_nll(images: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Return -log[s(a) - s(b)] at the bin edges a > b, with open outer bins.

    s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) avoids the difference of nearly equal numbers, so the tails are exact
    however wrong the location is.
    """
    inverse_scale = torch.exp(-log_scale)
    half_bin = 0.5 / LEVELS
    upper = F.logsigmoid((images - location + half_bin) * inverse_scale)
    lower = F.logsigmoid((location - images + half_bin) * inverse_scale)
    inside = torch.log(-torch.expm1(-inverse_scale / LEVELS))
    log_prob = torch.where(images >= 1, lower, torch.where(images <= 0, upper, upper + lower + inside))
    return -log_prob
