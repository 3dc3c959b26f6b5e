"""The deterministic part of every model: one trunk and one decoder, as tables of layers.

All models of a comparison take the same table and differ in where their latents are: a ladder reads
every rung of the trunk and joins the decoder at every joint, a stack reads the trunk's end and enters
the decoder at its top.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vlae.models.layers import Layer, Layers, dense, to_feature_map

ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class Merge:
    """Where rung l < L-1 joins the decoder.

    Args:
        inject: from z_l to what is laid beside the features from above; empty: z_l itself.
        before: for the features from above, before z_l comes to them.
        after: for the two together.
        gated: features + gate * inject(z_l), with a learned gate, instead of the two side by side.
    """

    latent_path: Layers
    before: Layers = ()
    after: Layers = ()
    gated: bool = False


@dataclass(frozen=True)
class Network:
    """A trunk and a decoder for L rungs, bottom first.

    Args:
        trunk: stages h_0 = image -> h_1 -> ...
        taps: rung l reads h_taps[l].
        rungs: from there to the features that its head sees.
        top: from z_{L-1} to the decoder's first features.
        joints: of the rungs below the top one.
        finish: from there to the image, before the likelihood's link.
        weight_std: standard deviation of the initial weights; None: torch's own.
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
    """What a table is made for: `units[l]` features in the dense layers of rung l, convolutions of `width` channels."""

    image: ImageShape
    rungs: int
    width: int
    units: tuple[int, ...]


def pyramid(size: ArchitectureSpec) -> Network:
    """Any image of 8 pixels or more and even sides, any number of rungs.

    Rung l reads trunk level l while the image can still be halved; rungs beyond the deepest level share it and
    are told apart by the blocks between them. Halving stops at 4 to 7 pixels, or at an odd size. The top
    rung runs to the deepest level and through dense layers.

    Raises:
        ValueError: the image cannot be halved once.
    """
    shapes = _levels(size.image, size.width)
    deepest, top = len(shapes) - 1, size.rungs - 1
    feature_levels = tuple(min(rung, deepest) for rung in range(size.rungs))
    joins = [min(tap + 1, deepest) for tap in feature_levels[:top]] + [deepest]

    def up(source: int, target: int) -> Layers:
        channels = shapes[max(target, 1)][0]
        return tuple(Layer("up", channels, 3) for _ in range(source, target, -1))

    def block(source: int, target: int) -> Layers:
        channels = shapes[target][0]
        first = Layer("conv", channels, 4, 2) if target > source else Layer("conv", channels, 3)
        return (first, Layer("conv", channels, 3))

    below_top = tuple(block(tap, min(tap + 1, deepest)) for tap in feature_levels[:top])
    to_the_end = sum((block(level, level + 1) for level in range(feature_levels[top], deepest)), ())
    join_at = [
        Merge(
            latent_path=(to_feature_map((size.width, *shapes[joins[rung]][1:]), is_output=True),),
            before=_climb(up, joins[rung + 1], joins[rung]),
            after=(Layer("conv", shapes[joins[rung]][0], 3),),
        )
        for rung in range(top)
    ]
    units = size.units[top]
    return Network(
        trunk=tuple(block(feature_levels[rung], feature_levels[rung + 1]) for rung in range(top)),
        feature_levels=tuple(range(size.rungs)),
        rungs=(*below_top, (to_the_end or block(deepest, deepest)) + dense(units, 2)),
        top=(*dense(units, 2), to_feature_map(shapes[deepest], is_output=True)),
        merges=tuple(join_at),
        output=(*_climb(up, joins[0], 0), Layer("conv", size.image[0], 3, is_output=True)),
    )


def _climb(up: Callable[[int, int], Layers], source: int, target: int) -> Layers:
    return sum((up(level, level - 1) for level in range(source, target, -1)), ())


def _levels(image: ImageShape, width: int) -> list[ImageShape]:
    """Shape by level: level 0 is the image, each next one half its size; channels double, from `width` to 8 times."""
    _, height, columns = image
    shapes = [image]
    while height % 2 == 0 and columns % 2 == 0 and min(height, columns) >= 8:
        height, columns = height // 2, columns // 2
        shapes.append((width * 2 ** min(len(shapes) - 1, 3), height, columns))
    if len(shapes) == 1:
        raise ValueError(f"images of {image[1]}x{image[2]} pixels cannot be halved once: 8 or more and even are needed")
    return shapes


def mlp(size: ArchitectureSpec) -> Network:
    """Dense layers only, two of `units[l]` features for rung l (Soenderby et al. 2016, with their sizes)."""
    top = size.rungs - 1
    return Network(
        trunk=tuple(dense(size.units[rung], 2) for rung in range(top)),
        feature_levels=tuple(range(size.rungs)),
        rungs=tuple(dense(units, 2) for units in size.units),
        top=dense(size.units[top], 2),
        merges=tuple(Merge(latent_path=(), after=dense(size.units[rung], 2)) for rung in range(top)),
        output=(to_feature_map(size.image, is_output=True),),
    )
