"""The networks of the reference codes, scaled by a width and by the units of their dense layers.

`small`, `medium` and `large` are those of the VLAE's authors (Zhao, Song, Ermon 2017; code
ermongroup/Variational-Ladder-Autoencoder): published at width 64 and 1024 units. `provlae` is that of
Li et al. 2020 (code Zhiyuan1991/proVLAE), at width 32 or 64 and 256 units. Layers of the reference that
nothing reads are left out.
"""

from vlae.models.architectures import ArchitectureSpec, Merge, Network
from vlae.models.layers import Activation, Layer, Layers, dense, to_feature_map

_STD = 0.02


def _convs(*channels: int, halving: tuple[int, ...], activation: Activation = "leaky") -> Layers:
    """4x4 convolutions; those whose place is in `halving` have stride 2."""
    return tuple(
        Layer("conv", units, 4, 2 if place in halving else 1, activation) for place, units in enumerate(channels)
    )


def _deconv(units: int, *, activation: Activation = "leaky", is_output: bool = False) -> Layer:
    return Layer("deconv", units, activation=activation, is_output=is_output)


def _conv(units: int, *, is_output: bool = False) -> Layer:
    """A transposed convolution of stride 1 is a convolution with its kernel turned round."""
    return Layer("conv", units, 4, is_output=is_output)


def require(size: ArchitectureSpec, name: str, rungs: int, divisor: int) -> None:
    """Refuse what a published network is not made for.

    Raises:
        ValueError: another number of rungs, or an image that cannot be halved often enough.
    """
    _, height, columns = size.image
    if size.rungs != rungs:
        raise ValueError(f"model.network={name} has {rungs} rungs, and model.latent_dims has {size.rungs}")
    if height % divisor or columns % divisor:
        raise ValueError(
            f"model.network={name} takes images whose sides are multiples of {divisor}, these have {height}x{columns} "
            "pixels: set model.network=pyramid"
        )


def small(size: ArchitectureSpec) -> Network:
    """The MNIST network: 28x28x1, three rungs, dense layers above two convolutions (25.9M parameters)."""
    require(size, "small", 3, 4)
    channels, height, columns = size.image
    width = size.width
    convs = _convs(width, 2 * width, halving=(0, 1))

    def relu(rung: int, count: int) -> Layers:
        return dense(size.units[rung], count, activation="relu")

    bottom = to_feature_map((2 * width, height // 4, columns // 4), activation="relu")
    return Network(
        trunk=(convs + dense(size.units[0]), dense(size.units[1], 3)),
        feature_levels=(0, 1, 2),
        rungs=(convs, dense(size.units[1], 2), dense(size.units[2], 2)),
        top=relu(1, 3),
        merges=(
            Merge(latent_path=relu(0, 1), gated=True, after=(bottom, _deconv(width))),
            Merge(latent_path=relu(1, 1), gated=True, after=relu(0, 3)),
        ),
        output=(_deconv(channels, is_output=True),),
        weight_std=_STD,
    )


def medium(size: ArchitectureSpec) -> Network:
    """The SVHN network: 32x32x3, four rungs, two convolutions each (18.5M parameters)."""
    require(size, "medium", 4, 8)
    channels, height, columns = size.image
    width, units = size.width, size.units[3]
    stages = tuple(_convs(width * scale, width * scale, halving=(0,)) for scale in (1, 2, 4))
    deepest = to_feature_map((4 * width, height // 8, columns // 8), activation="relu")
    return Network(
        trunk=stages,
        feature_levels=(0, 1, 2, 3),
        rungs=(*stages, dense(units, 2)),
        top=dense(units, 3, activation="relu"),
        merges=(
            Merge(
                latent_path=(to_feature_map((width, height // 2, columns // 2), activation="relu"),),
                after=(_deconv(width),),
            ),
            Merge(
                latent_path=(to_feature_map((2 * width, height // 4, columns // 4), activation="relu"),),
                after=(_deconv(2 * width), _conv(width)),
            ),
            Merge(latent_path=(), after=(deepest, _deconv(4 * width), _conv(2 * width))),
        ),
        output=(_conv(channels, is_output=True),),
        weight_std=_STD,
    )


def large(size: ArchitectureSpec) -> Network:
    """The CelebA and LSUN network: 64x64x3, four rungs (51.6M and 54.4M parameters)."""
    require(size, "large", 4, 16)
    channels, height, columns = size.image
    w, units = size.width, size.units[3]
    stages = (
        _convs(w, w, halving=(0,)),
        _convs(2 * w, 2 * w, 4 * w, halving=(0, 2)),
        _convs(4 * w, 8 * w, 8 * w, halving=(1,)),
    )

    def latent_path(scale: int, halvings: int) -> Layers:
        return (to_feature_map((scale * w, height >> halvings, columns >> halvings), activation="relu"),)

    return Network(
        trunk=stages,
        feature_levels=(0, 1, 2, 3),
        rungs=(*stages, dense(units, 2)),
        top=dense(units, 2, activation="relu") + latent_path(8, 4),
        merges=(
            Merge(latent_path=latent_path(1, 1), after=(_deconv(w),)),
            Merge(latent_path=latent_path(4, 3), after=(_deconv(2 * w), _conv(2 * w), _deconv(w))),
            Merge(latent_path=latent_path(8, 4), after=(_conv(8 * w), _deconv(4 * w), _conv(4 * w))),
        ),
        output=(_conv(channels, is_output=True),),
        weight_std=_STD,
    )


def provlae(size: ArchitectureSpec) -> Network:
    """The progressive VLAE's: rung l reads one convolution more than rung l-1, and none reads the image itself.

    Three rungs have `width` channels everywhere (dSprites, 3D Shapes: 64x64, 5.71M parameters); with four or more
    the channels double from rung to rung (CelebA).
    """
    rungs, (channels, height, columns) = size.rungs, size.image
    require(size, "provlae", max(2, rungs), 2 ** (rungs + 1))
    scales = [1 if rungs <= 3 else 2**rung for rung in range(rungs)]
    widths = [size.width * scale for scale in scales]

    def folded(rung: int, halvings: int) -> Layers:
        shape = (widths[rung], height >> halvings, columns >> halvings)
        return (*dense(size.units[rung], activation="elu"), to_feature_map(shape, activation="elu"))

    top = rungs - 1
    return Network(
        trunk=tuple(_convs(width, halving=(0,), activation="elu") for width in widths),
        feature_levels=tuple(range(1, rungs + 1)),
        rungs=tuple(
            _convs(widths[rung], halving=(0,), activation="elu") + dense(size.units[rung], activation="elu")
            for rung in range(rungs)
        ),
        top=(*folded(top, rungs + 1), _deconv(widths[top], activation="elu")),
        merges=tuple(
            Merge(latent_path=folded(rung, rung + 2), after=(_deconv(widths[rung], activation="elu"),))
            for rung in range(top)
        ),
        output=(_deconv(channels, is_output=True),),
    )
