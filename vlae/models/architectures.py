"""The deterministic part of every model as data: one trunk and one decoder made of layers.

All models of a comparison have the same architecture and differ in where their latents are. A ladder reads every
feature level of the trunk and enters the decoder at every merge. A stacked VAE reads the end of the trunk and enters
the decoder at the top.
"""

from dataclasses import dataclass

from vlae.models.layers import ImageShape, Layer, Layers, dense, to_feature_map


@dataclass(frozen=True)
class Merge:
    """The point of the decoder where the latent of a rung below the top one enters.

    Attributes:
        latent_path: Layers from z_l to the features that are merged; empty for z_l itself.
        before: Layers of the features from above before the merge.
        after: Layers of the merged features.
        gated: Whether the merge is features + gate * latent_path(z_l) with a learned gate instead of a concatenation.
    """

    latent_path: Layers
    before: Layers = ()
    after: Layers = ()
    gated: bool = False


@dataclass(frozen=True)
class Network:
    """A trunk and a decoder for L rungs, bottom first.

    Attributes:
        trunk: Stages from the image h_0 to features h_1, h_2, ...
        feature_levels: Rung l reads h_k with k = feature_levels[l].
        rungs: Layers from those features to the input of each rung's head.
        top: Layers from z_{L-1} to the first features of the decoder.
        merges: Merges of the rungs below the top one.
        output: Layers from the last merge to the decoder's output.
        weight_std: Standard deviation of the initial weights; None for PyTorch's default.
    """

    trunk: tuple[Layers, ...]
    feature_levels: tuple[int, ...]
    rungs: tuple[Layers, ...]
    top: Layers
    merges: tuple[Merge, ...]
    output: Layers
    weight_std: float | None = None


@dataclass(frozen=True)
class ArchitectureSpec:
    """The sizes that an architecture is built for.

    Attributes:
        width: Channels of the convolutions at half resolution.
        hidden_dims: Units of the dense layers of each rung, bottom first.
    """

    image_shape: ImageShape
    width: int
    hidden_dims: tuple[int, ...]

    @property
    def rungs(self) -> int:
        """Number of rungs L."""
        return len(self.hidden_dims)


def pyramid(spec: ArchitectureSpec) -> Network:
    """Return the default architecture, for any number of rungs and images of even sides of 8 pixels or more.

    Rung l reads level l of the trunk while the image can be halved. Further rungs share the deepest level and differ
    by the blocks between them. Halving stops at 4 to 7 pixels, or at an odd size. The top rung runs to the deepest
    level and through dense layers.

    Raises:
        ValueError: The image cannot be halved once.
    """
    channels, height, width = spec.image_shape
    shapes = [spec.image_shape]  # by level: each is half the size of the one before
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
        shapes.append((spec.width * 2 ** min(len(shapes) - 1, 3), height, width))
    if len(shapes) == 1:
        raise ValueError(
            f"model.network=pyramid: images of {height}x{width} pixels cannot be halved. "
            "Use images whose sides are even and at least 8 pixels."
        )
    deepest, top = len(shapes) - 1, spec.rungs - 1
    levels = [min(rung, deepest) for rung in range(spec.rungs)]
    merge_levels = [min(level + 1, deepest) for level in levels[:top]] + [deepest]

    def block(source: int, target: int) -> Layers:
        units = shapes[target][0]
        first = Layer("conv", units, 4, 2) if target > source else Layer("conv", units, 3)
        return (first, Layer("conv", units, 3))

    def climb(source: int, target: int) -> Layers:
        return tuple(Layer("up", shapes[max(level - 1, 1)][0], 3) for level in range(source, target, -1))

    to_deepest = sum((block(level, level + 1) for level in range(levels[top], deepest)), ())
    dense_layers = dense(spec.hidden_dims[top], 2)
    return Network(
        trunk=tuple(block(levels[rung], levels[rung + 1]) for rung in range(top)),
        feature_levels=tuple(range(spec.rungs)),
        rungs=(
            *(block(levels[rung], merge_levels[rung]) for rung in range(top)),
            (to_deepest or block(deepest, deepest)) + dense_layers,
        ),
        top=(*dense_layers, to_feature_map(shapes[deepest], is_output=True)),
        merges=tuple(
            Merge(
                latent_path=(to_feature_map((spec.width, *shapes[level][1:]), is_output=True),),
                before=climb(merge_levels[rung + 1], level),
                after=(Layer("conv", shapes[level][0], 3),),
            )
            for rung, level in enumerate(merge_levels[:top])
        ),
        output=(*climb(merge_levels[0], 0), Layer("conv", channels, 3, is_output=True)),
    )


def mlp(spec: ArchitectureSpec) -> Network:
    """Return dense layers only, two per rung, for any number of rungs and any images; `spec.width` has no effect.

    References:
        Sønderby et al.: "Ladder Variational Autoencoders", NIPS 2016, arXiv:1602.02282.
    """
    *below, top = spec.hidden_dims
    return Network(
        trunk=tuple(dense(units, 2) for units in below),
        feature_levels=tuple(range(spec.rungs)),
        rungs=tuple(dense(units, 2) for units in spec.hidden_dims),
        top=dense(top, 2),
        merges=tuple(Merge(latent_path=(), after=dense(units, 2)) for units in below),
        output=(to_feature_map(spec.image_shape, is_output=True),),
    )
