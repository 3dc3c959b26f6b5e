"""Which axes the rungs have, learned apart from what they tell."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlae.gaussian import DiagonalGaussian


class Rotations(nn.Module):
    """A rotation of each rung's latents that its head and the decoder share; none at the start.

    To turn a rung without it, head and decoder have to change in step while every update disturbs both, so a rung
    stays about as it is turned when it begins to tell something. With it, the image hardly depends on the turn, and the
    prior alone decides on it.

    The rotations are Cayley's of skew matrices: any but half turns, which axes can do without.

    Args:
        dims: D_l of each rung.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.skews = nn.ParameterList(nn.Parameter(torch.zeros(dim, dim)) for dim in dims)  # above the diagonal

    def forward(self, posteriors: Sequence[DiagonalGaussian]) -> list[DiagonalGaussian]:
        """What the heads say, (B, D_l), with its means turned: R_l mean."""
        means = [q.mean @ rotation(skew).T for q, skew in zip(posteriors, self.skews, strict=True)]
        return [DiagonalGaussian(mean, q.log_sigma) for mean, q in zip(means, posteriors, strict=True)]

    def inverse(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """From latents to what the decoder reads, (B, D_l): R_l^T z_l."""
        return [z @ rotation(skew) for z, skew in zip(latents, self.skews, strict=True)]


def rotation(skew: Tensor) -> Tensor:
    """Cayley's rotation by the entries of (D, D) above the diagonal: (D, D), orthogonal, of determinant 1."""
    upper = skew.triu(1)
    half = (upper - upper.T) / 2
    one = torch.eye(len(half), dtype=half.dtype, device=half.device)
    # 1 - half is never singular, so the check, for which the CPU would wait for a GPU, is left out.
    turned: Tensor = torch.linalg.solve_ex(one - half, one + half).result
    return turned
