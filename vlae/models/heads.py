"""Heads: layers that map features to a diagonal Gaussian."""

import math

from torch import Tensor, nn

from vlae.gaussian import DiagonalGaussian, SigmaLink
from vlae.models.layers import Norm

# Raw output for which each link gives sigma = 1, or nearly so.
_UNIT_SIGMA: dict[SigmaLink, float] = {"exp": 0.0, "sigmoid": 6.0, "softplus": math.log(math.e - 1)}


class GaussianHead(nn.Module):
    """Linear map of features to N(mean, sigma).

    Args:
        features: Number of features F.
        dim: Number of latent dimensions D.
        link: Function from the raw output to sigma (`DiagonalGaussian.from_parameters`).
        norm: "batch" normalizes mean and raw sigma over the batch (Sønderby et al. 2016, section 3); other values
            leave them unchanged.
    """

    def __init__(self, features: int, dim: int, link: SigmaLink, norm: Norm = "none") -> None:
        super().__init__()
        self.link = link
        self.linear = nn.Linear(features, 2 * dim)
        self.norm = nn.BatchNorm1d(2 * dim) if norm == "batch" else nn.Identity()

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Return a Gaussian over (B, D) from features (B, ...), which are flattened to (B, F)."""
        return DiagonalGaussian.from_parameters(self.norm(self.linear(features.flatten(1))), self.link)

    @property
    def output_layer(self) -> nn.Linear | nn.BatchNorm1d:
        """Layer that sets the outputs' scale and shift, because batch norm undoes those of the layer before it."""
        return self.norm if isinstance(self.norm, nn.BatchNorm1d) else self.linear


def posterior_head(features: int, dim: int, link: SigmaLink, norm: Norm = "none") -> GaussianHead:
    """Return the head of a posterior that distinguishes images from the first step; arguments as for `GaussianHead`.

    Means start with a standard deviation of about 1 over the data and sigma well below 1, so each dimension carries
    about half a nat before training. A head that starts at the prior carries nothing, and the decoder soon learns to
    ignore its latent.
    """
    head = GaussianHead(features, dim, link, norm)
    nn.init.normal_(head.linear.weight[:dim], std=features**-0.5)
    nn.init.zeros_(head.linear.bias)
    nn.init.zeros_(head.output_layer.weight[dim:])
    nn.init.constant_(head.output_layer.bias[dim:], -1.0)
    return head


def prior_head(features: int, dim: int, link: SigmaLink, norm: Norm = "none") -> GaussianHead:
    """Return the head of a learned prior, which starts at N(0, I); arguments as for `GaussianHead`."""
    head = GaussianHead(features, dim, link, norm)
    nn.init.zeros_(head.linear.bias)
    nn.init.zeros_(head.output_layer.weight)
    nn.init.constant_(head.output_layer.bias[dim:], _UNIT_SIGMA[link])
    return head
