"""Heads: from features to the parameters of a diagonal Gaussian."""

import math

from torch import Tensor, nn

from vlae.gaussian import DiagonalGaussian, SigmaLink
from vlae.models.layers import Norm

# What gives sigma = 1 through each link, or as near as it comes.
_UNIT_SIGMA: dict[SigmaLink, float] = {"exp": 0.0, "sigmoid": 6.0, "softplus": math.log(math.e - 1)}


class GaussianHead(nn.Module):
    """Linear map of features (B, F) to N(mean, sigma) over (B, D).

    Args:
        features: F.
        dim: D.
        sigma: how the raw output becomes sigma (`DiagonalGaussian.from_parameters`).
        norm: `batch` normalizes the parameters themselves over the batch (Soenderby et al. 2016, section 3);
            the others leave them as they are.
    """

    def __init__(self, features: int, dim: int, sigma: SigmaLink, norm: Norm = "none") -> None:
        super().__init__()
        self.sigma = sigma
        self.linear = nn.Linear(features, 2 * dim)
        self.norm = nn.BatchNorm1d(2 * dim) if norm == "batch" else nn.Identity()

    def forward(self, features: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(self.norm(self.linear(features.flatten(1))), self.sigma)


def posterior_head(features: int, dim: int, sigma: SigmaLink, norm: Norm = "none") -> GaussianHead:
    """Head of a posterior that tells images apart from the first step.

    Means start with a standard deviation of about one over the data and sigma well below one, so each
    dimension passes half a nat or so before anything is learned. A head that starts at the prior passes
    nothing, and a decoder soon learns to do without it.
    """
    head = GaussianHead(features, dim, sigma, norm)
    nn.init.normal_(head.linear.weight[:dim], std=features**-0.5)
    nn.init.zeros_(head.linear.bias)
    _start(head, dim, -1.0)
    return head


def prior_head(features: int, dim: int, sigma: SigmaLink, norm: Norm = "none") -> GaussianHead:
    """Head of a learned prior, which starts at N(0, I)."""
    head = GaussianHead(features, dim, sigma, norm)
    last = head.norm if isinstance(head.norm, nn.BatchNorm1d) else head.linear
    nn.init.zeros_(last.weight)
    nn.init.zeros_(head.linear.bias)
    _start(head, dim, _UNIT_SIGMA[sigma])
    return head


def _start(head: GaussianHead, dim: int, raw_sigma: float) -> None:
    """Sigma the same for all images at first; batch norm would undo what is set in the layer before it."""
    last = head.norm if isinstance(head.norm, nn.BatchNorm1d) else head.linear
    nn.init.zeros_(last.weight[dim:])
    nn.init.constant_(last.bias[dim:], raw_sigma)
