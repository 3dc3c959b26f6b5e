"""A learned rotation of each rung's axes, shared by its head and the decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlae.gaussian import DiagonalGaussian


class Rotations(nn.Module):
    """One rotation R_l per rung, the identity at first: z_l = R_l h_l, and the decoder reads R_l^T z_l.

    Without this module, head and decoder must change in step to rotate a rung, so a rung keeps about the axes that it
    has when it becomes active. With this module the image hardly depends on R_l, and the prior alone selects the axes.

    R_l is the Cayley transform of a skew-symmetric matrix, which reaches every rotation without a half turn. A half
    turn only flips signs of axes.

    Args:
        dims: Latent dimensions D_l of each rung, bottom first.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.skews = nn.ParameterList(nn.Parameter(torch.zeros(dim, dim)) for dim in dims)  # used above the diagonal

    def forward(self, posteriors: Sequence[DiagonalGaussian]) -> list[DiagonalGaussian]:
        """Return the heads' posteriors over (B, D_l) with rotated means R_l mean and the same scales."""
        return [
            DiagonalGaussian(q.mean @ rotation_matrix(skew).T, q.log_sigma)
            for q, skew in zip(posteriors, self.skews, strict=True)
        ]

    def inverse(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Return R_l^T z_l, (B, D_l) per rung, for the decoder."""
        return [z @ rotation_matrix(skew) for z, skew in zip(latents, self.skews, strict=True)]


def rotation_matrix(skew: Tensor) -> Tensor:
    """Return the Cayley transform R = (I - A/2)^-1 (I + A/2) of A = U - U^T, (D, D), orthogonal with determinant 1.

    U is the part of `skew` (D, D) above the diagonal, so A is skew-symmetric.
    """
    upper = skew.triu(1)
    half = (upper - upper.T) / 2
    identity = torch.eye(len(half), dtype=half.dtype, device=half.device)
    # solve_ex without the check, because the CPU would wait for a GPU; I - A/2 is never singular.
    rotation: Tensor = torch.linalg.solve_ex(identity - half, identity + half).result
    return rotation
