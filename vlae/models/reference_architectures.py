"""The architectures of the released codes, scaled by a width and by the units of their dense layers.

`small`, `medium` and `large` are those of the VLAE (ermongroup/Variational-Ladder-Autoencoder), published at width 64
and 1024 units. `provlae` is that of the progressive VLAE (Zhiyuan1991/proVLAE), published at width 32 or 64 and 256
units. Layers of the released codes whose output is never read are left out.

References:
    Zhao, Song, Ermon: "Learning Hierarchical Features from Generative Models", ICML 2017, arXiv:1702.08396.
    Li, Murkute, Gyawali, Wang: "Progressive Learning and Disentanglement of Hierarchical Representations", ICLR 2020,
    arXiv:2002.10549.
"""

from vlae.models.architectures import ArchitectureSpec, Merge, Network
from vlae.models.layers import Activation, Layer, Layers, dense, to_feature_map

_STD = 0.02


def _convs(*channels: int, halving: tuple[int, ...], activation: Activation = "leaky") -> Layers:
    """Return 4x4 convolutions; those with an index in `halving` have stride 2."""
    return tuple(
        Layer("conv", units, 4, 2 if index in halving else 1, activation) for index, units in enumerate(channels)
    )


def _deconv(units: int, *, activation: Activation = "leaky", is_output: bool = False) -> Layer:
    return Layer("deconv", units, activation=activation, is_output=is_output)


def _conv(units: int, *, is_output: bool = False) -> Layer:
    """Return a 4x4 convolution, which is a transposed convolution of stride 1 with a flipped kernel."""
    return Layer("conv", units, 4, is_output=is_output)


def _validate(spec: ArchitectureSpec, name: str, rungs: int, divisor: int) -> None:
    """Raise a ValueError for another number of rungs, or an image that cannot be halved often enough."""
    _, height, width = spec.image_shape
    if spec.rungs != rungs:
        raise ValueError(
            f"model.latent_dims: {spec.rungs} rungs, but model.network={name} has {rungs}. Set {rungs} values."
        )
    if height % divisor or width % divisor:
        raise ValueError(
            f"model.network={name}: the sides of {height}x{width} pixels are no multiples of {divisor}. "
            "Set model.network=pyramid."
        )


def small(spec: ArchitectureSpec) -> Network:
    """Return the VLAE's MNIST architecture: 28x28x1, three rungs, dense layers above two convolutions (25.9M).

    Raises:
        ValueError: The number of rungs is not 3, or a side is no multiple of 4.
    """
    _validate(spec, "small", 3, 4)
    channels, height, columns = spec.image_shape
    width, units = spec.width, spec.hidden_dims
    convs = _convs(width, 2 * width, halving=(0, 1))
    bottom = to_feature_map((2 * width, height // 4, columns // 4), activation="relu")
    return Network(
        trunk=(convs + dense(units[0]), dense(units[1], 3)),
        feature_levels=(0, 1, 2),
        rungs=(convs, dense(units[1], 2), dense(units[2], 2)),
        top=dense(units[1], 3, activation="relu"),
        merges=(
            Merge(latent_path=dense(units[0], activation="relu"), gated=True, after=(bottom, _deconv(width))),
            Merge(
                latent_path=dense(units[1], activation="relu"), gated=True, after=dense(units[0], 3, activation="relu")
            ),
        ),
        output=(_deconv(channels, is_output=True),),
        weight_std=_STD,
    )


def medium(spec: ArchitectureSpec) -> Network:
    """Return the VLAE's SVHN architecture: 32x32x3, four rungs, two convolutions each (18.5M parameters).

    Raises:
        ValueError: The number of rungs is not 4, or a side is no multiple of 8.
    """
    _validate(spec, "medium", 4, 8)
    channels, height, columns = spec.image_shape
    w, units = spec.width, spec.hidden_dims[3]
    stages = tuple(_convs(w * scale, w * scale, halving=(0,)) for scale in (1, 2, 4))

    def feature_map(scale: int, halvings: int) -> Layer:
        return to_feature_map((scale * w, height >> halvings, columns >> halvings), activation="relu")

    return Network(
        trunk=stages,
        feature_levels=(0, 1, 2, 3),
        rungs=(*stages, dense(units, 2)),
        top=dense(units, 3, activation="relu"),
        merges=(
            Merge(latent_path=(feature_map(1, 1),), after=(_deconv(w),)),
            Merge(latent_path=(feature_map(2, 2),), after=(_deconv(2 * w), _conv(w))),
            Merge(latent_path=(), after=(feature_map(4, 3), _deconv(4 * w), _conv(2 * w))),
        ),
        output=(_conv(channels, is_output=True),),
        weight_std=_STD,
    )


def large(spec: ArchitectureSpec) -> Network:
    """Return the VLAE's CelebA and LSUN architecture: 64x64x3, four rungs (51.6M and 54.4M parameters).

    Raises:
        ValueError: The number of rungs is not 4, or a side is no multiple of 16.
    """
    _validate(spec, "large", 4, 16)
    channels, height, columns = spec.image_shape
    w, units = spec.width, spec.hidden_dims[3]
    stages = (
        _convs(w, w, halving=(0,)),
        _convs(2 * w, 2 * w, 4 * w, halving=(0, 2)),
        _convs(4 * w, 8 * w, 8 * w, halving=(1,)),
    )

    def feature_map(scale: int, halvings: int) -> Layer:
        return to_feature_map((scale * w, height >> halvings, columns >> halvings), activation="relu")

    return Network(
        trunk=stages,
        feature_levels=(0, 1, 2, 3),
        rungs=(*stages, dense(units, 2)),
        top=(*dense(units, 2, activation="relu"), feature_map(8, 4)),
        merges=(
            Merge(latent_path=(feature_map(1, 1),), after=(_deconv(w),)),
            Merge(latent_path=(feature_map(4, 3),), after=(_deconv(2 * w), _conv(2 * w), _deconv(w))),
            Merge(latent_path=(feature_map(8, 4),), after=(_conv(8 * w), _deconv(4 * w), _conv(4 * w))),
        ),
        output=(_conv(channels, is_output=True),),
        weight_std=_STD,
    )


def provlae(spec: ArchitectureSpec) -> Network:
    """Return the progressive VLAE's architecture: rung l reads one convolution more than rung l-1.

    No rung reads the image itself. Up to three rungs have `width` channels everywhere (dSprites, 3D Shapes: 64x64,
    5.71M parameters); with four or more the channels double from rung to rung (CelebA).

    Raises:
        ValueError: There are fewer than 2 rungs, or a side is no multiple of 2^(rungs + 1).
    """
    rungs, (channels, height, columns) = spec.rungs, spec.image_shape
    _validate(spec, "provlae", max(2, rungs), 2 ** (rungs + 1))
    widths = [spec.width * (1 if rungs <= 3 else 2**rung) for rung in range(rungs)]
    hidden = [dense(units, activation="elu") for units in spec.hidden_dims]
    stages = [_convs(width, halving=(0,), activation="elu") for width in widths]
    deconvs = [_deconv(width, activation="elu") for width in widths]

    def latent_path(rung: int, halvings: int) -> Layers:
        shape = (widths[rung], height >> halvings, columns >> halvings)
        return (*hidden[rung], to_feature_map(shape, activation="elu"))

    top = rungs - 1
    return Network(
        trunk=tuple(stages),
        feature_levels=tuple(range(1, rungs + 1)),
        rungs=tuple(stage + layers for stage, layers in zip(stages, hidden, strict=True)),
        top=(*latent_path(top, rungs + 1), deconvs[top]),
        merges=tuple(Merge(latent_path=latent_path(rung, rung + 2), after=(deconvs[rung],)) for rung in range(top)),
        output=(_deconv(channels, is_output=True),),
    )
