"""The baseline of `train_step`: the same VLAE as one flat module, as written for a single experiment.

Four rungs, the pyramid's layers at 64x64, group norm, an unrolled forward, KL and likelihood in place. It shares no
code with the package.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FlatVlae(nn.Module):
    """VLAE of RGB images with four rungs, its parameters in the order of the package's.

    Args:
        width: Channels at half resolution, a multiple of 8.
        size: Side of the images, pixels: 64, 80, 96 or 112, which the pyramid halves four times.
        dims: Latents of each rung, bottom first.
        hidden: Units of the fully connected layers.
    """

    def __init__(
        self, width: int = 32, size: int = 64, dims: tuple[int, int, int, int] = (4, 4, 4, 10), hidden: int = 256
    ) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((3, 1, 1), math.log(0.1)))
        self.width, self.size = width, size
        self._make_trunk(width)
        self._make_rungs(width, size, dims, hidden)
        self._make_decoder(width, size, dims, hidden)

    def _make_trunk(self, w: int) -> None:
        self.trunk1a = nn.Conv2d(3, w, 4, 2, 1)
        self.trunk1a_norm = nn.GroupNorm(w // 8, w)
        self.trunk1b = nn.Conv2d(w, w, 3, 1, 1)
        self.trunk1b_norm = nn.GroupNorm(w // 8, w)
        self.trunk2a = nn.Conv2d(w, 2 * w, 4, 2, 1)
        self.trunk2a_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.trunk2b = nn.Conv2d(2 * w, 2 * w, 3, 1, 1)
        self.trunk2b_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.trunk3a = nn.Conv2d(2 * w, 4 * w, 4, 2, 1)
        self.trunk3a_norm = nn.GroupNorm(4 * w // 8, 4 * w)
        self.trunk3b = nn.Conv2d(4 * w, 4 * w, 3, 1, 1)
        self.trunk3b_norm = nn.GroupNorm(4 * w // 8, 4 * w)

    def _make_rungs(self, w: int, size: int, dims: tuple[int, ...], hidden: int) -> None:
        self.rung0a = nn.Conv2d(3, w, 4, 2, 1)
        self.rung0a_norm = nn.GroupNorm(w // 8, w)
        self.rung0b = nn.Conv2d(w, w, 3, 1, 1)
        self.rung0b_norm = nn.GroupNorm(w // 8, w)
        self.rung1a = nn.Conv2d(w, 2 * w, 4, 2, 1)
        self.rung1a_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.rung1b = nn.Conv2d(2 * w, 2 * w, 3, 1, 1)
        self.rung1b_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.rung2a = nn.Conv2d(2 * w, 4 * w, 4, 2, 1)
        self.rung2a_norm = nn.GroupNorm(4 * w // 8, 4 * w)
        self.rung2b = nn.Conv2d(4 * w, 4 * w, 3, 1, 1)
        self.rung2b_norm = nn.GroupNorm(4 * w // 8, 4 * w)
        self.rung3a = nn.Conv2d(4 * w, 8 * w, 4, 2, 1)
        self.rung3a_norm = nn.GroupNorm(8 * w // 8, 8 * w)
        self.rung3b = nn.Conv2d(8 * w, 8 * w, 3, 1, 1)
        self.rung3b_norm = nn.GroupNorm(8 * w // 8, 8 * w)
        self.rung3c = nn.Linear(8 * w * (size // 16) ** 2, hidden)
        self.rung3c_norm = nn.LayerNorm(hidden)
        self.rung3d = nn.Linear(hidden, hidden)
        self.rung3d_norm = nn.LayerNorm(hidden)
        self.head0 = nn.Linear(w * (size // 2) ** 2, 2 * dims[0])
        self.head1 = nn.Linear(2 * w * (size // 4) ** 2, 2 * dims[1])
        self.head2 = nn.Linear(4 * w * (size // 8) ** 2, 2 * dims[2])
        self.head3 = nn.Linear(hidden, 2 * dims[3])

    def _make_decoder(self, w: int, size: int, dims: tuple[int, ...], hidden: int) -> None:
        self.top_a = nn.Linear(dims[3], hidden)
        self.top_a_norm = nn.LayerNorm(hidden)
        self.top_b = nn.Linear(hidden, hidden)
        self.top_b_norm = nn.LayerNorm(hidden)
        self.top_c = nn.Linear(hidden, 8 * w * (size // 16) ** 2)
        self.up0 = nn.Conv2d(2 * w, w, 3, 1, 1)
        self.up0_norm = nn.GroupNorm(w // 8, w)
        self.inject0 = nn.Linear(dims[0], w * (size // 2) ** 2)
        self.join0 = nn.Conv2d(2 * w, w, 3, 1, 1)
        self.join0_norm = nn.GroupNorm(w // 8, w)
        self.up1 = nn.Conv2d(4 * w, 2 * w, 3, 1, 1)
        self.up1_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.inject1 = nn.Linear(dims[1], w * (size // 4) ** 2)
        self.join1 = nn.Conv2d(3 * w, 2 * w, 3, 1, 1)
        self.join1_norm = nn.GroupNorm(2 * w // 8, 2 * w)
        self.up2 = nn.Conv2d(8 * w, 4 * w, 3, 1, 1)
        self.up2_norm = nn.GroupNorm(4 * w // 8, 4 * w)
        self.inject2 = nn.Linear(dims[2], w * (size // 8) ** 2)
        self.join2 = nn.Conv2d(5 * w, 4 * w, 3, 1, 1)
        self.join2_norm = nn.GroupNorm(4 * w // 8, 4 * w)
        self.finish_a = nn.Conv2d(w, w, 3, 1, 1)
        self.finish_a_norm = nn.GroupNorm(w // 8, w)
        self.finish_b = nn.Conv2d(w, 3, 3, 1, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean and raw log sigma of each rung, (B, 2 D), of images (B, 3, H, W) in [0, 1]."""
        x = 2 * images - 1
        h1 = F.leaky_relu(self.trunk1a_norm(self.trunk1a(x)), 0.1)
        h1 = F.leaky_relu(self.trunk1b_norm(self.trunk1b(h1)), 0.1)
        h2 = F.leaky_relu(self.trunk2a_norm(self.trunk2a(h1)), 0.1)
        h2 = F.leaky_relu(self.trunk2b_norm(self.trunk2b(h2)), 0.1)
        h3 = F.leaky_relu(self.trunk3a_norm(self.trunk3a(h2)), 0.1)
        h3 = F.leaky_relu(self.trunk3b_norm(self.trunk3b(h3)), 0.1)
        r0 = F.leaky_relu(self.rung0a_norm(self.rung0a(x)), 0.1)
        r0 = F.leaky_relu(self.rung0b_norm(self.rung0b(r0)), 0.1)
        r1 = F.leaky_relu(self.rung1a_norm(self.rung1a(h1)), 0.1)
        r1 = F.leaky_relu(self.rung1b_norm(self.rung1b(r1)), 0.1)
        r2 = F.leaky_relu(self.rung2a_norm(self.rung2a(h2)), 0.1)
        r2 = F.leaky_relu(self.rung2b_norm(self.rung2b(r2)), 0.1)
        r3 = F.leaky_relu(self.rung3a_norm(self.rung3a(h3)), 0.1)
        r3 = F.leaky_relu(self.rung3b_norm(self.rung3b(r3)), 0.1)
        r3 = F.leaky_relu(self.rung3c_norm(self.rung3c(r3.flatten(1))), 0.1)
        r3 = F.leaky_relu(self.rung3d_norm(self.rung3d(r3)), 0.1)
        return self.head0(r0.flatten(1)), self.head1(r1.flatten(1)), self.head2(r2.flatten(1)), self.head3(r3)

    def decode(self, z0: Tensor, z1: Tensor, z2: Tensor, z3: Tensor) -> Tensor:
        """Return the output before the sigmoid, (B, 3, H, W)."""
        w, size = self.width, self.size
        h = F.leaky_relu(self.top_a_norm(self.top_a(z3)), 0.1)
        h = F.leaky_relu(self.top_b_norm(self.top_b(h)), 0.1)
        h = self.top_c(h).view(-1, 8 * w, size // 16, size // 16)
        h = F.leaky_relu(self.up2_norm(self.up2(F.interpolate(h, scale_factor=2.0))), 0.1)
        h = torch.cat([h, self.inject2(z2).view(-1, w, size // 8, size // 8)], 1)
        h = F.leaky_relu(self.join2_norm(self.join2(h)), 0.1)
        h = F.leaky_relu(self.up1_norm(self.up1(F.interpolate(h, scale_factor=2.0))), 0.1)
        h = torch.cat([h, self.inject1(z1).view(-1, w, size // 4, size // 4)], 1)
        h = F.leaky_relu(self.join1_norm(self.join1(h)), 0.1)
        h = F.leaky_relu(self.up0_norm(self.up0(F.interpolate(h, scale_factor=2.0))), 0.1)
        h = torch.cat([h, self.inject0(z0).view(-1, w, size // 2, size // 2)], 1)
        h = F.leaky_relu(self.join0_norm(self.join0(h)), 0.1)
        h = F.leaky_relu(self.finish_a_norm(self.finish_a(F.interpolate(h, scale_factor=2.0))), 0.1)
        return self.finish_b(h)

    def forward(self, images: Tensor, noise: list[Tensor], kl_weight: float) -> Tensor:
        """Return the mean loss of a batch in nats per image: discretized logistic + kl_weight * KL."""
        latents, kl = [], 0.0
        for parameters, eps in zip(self.encode(images), noise, strict=True):
            mean, raw = parameters.float().chunk(2, 1)
            log_sigma = 5 * torch.tanh(raw / 5)
            latents.append(mean + log_sigma.exp() * eps)
            kl = kl + (0.5 * (mean**2 + torch.exp(2 * log_sigma) - 1) - log_sigma).sum(1)
        location = torch.sigmoid(self.decode(*latents).float())
        log_scale = F.softplus(self.log_scale + 7) - 7
        inverse = torch.exp(-log_scale)
        above = F.logsigmoid((images - location + 0.5 / 255) * inverse)
        below = F.logsigmoid((location - images + 0.5 / 255) * inverse)
        inside = above + below + torch.log(-torch.expm1(-inverse / 255))
        log_prob = torch.where(images >= 1, below, torch.where(images <= 0, above, inside))
        return (kl_weight * kl - log_prob.flatten(1).sum(1)).mean()


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters in their order.

    Args:
        source: Module to copy from.
        target: Module to copy to.

    Raises:
        ValueError: The modules differ in the number of parameters or in a shape.
    """
    pairs = list(zip(source.parameters(), target.parameters(), strict=True))
    if any(parameter.shape != copy.shape for parameter, copy in pairs):
        raise ValueError("the two modules differ: they need the same layers in the same order")
    with torch.no_grad():
        for parameter, copy in pairs:
            copy.copy_(parameter)
