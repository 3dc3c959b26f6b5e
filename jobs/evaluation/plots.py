"""Pictures for people, as PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from jobs.evaluation.encode import Encodings
from vlae.gibbs import GibbsCurve, gibbs_strip
from vlae.metrics import active_units, rates
from vlae.models.base import HierarchicalModel
from vlae.traversals import manifold, resample_rung

_GAP = 2  # pixels between tiles, each image drawn at twice its size or more


def tile(images: Tensor, gap: int = 1) -> NDArray[np.uint8]:
    """Lay images (R, K, C, H, W) in [0, 1] on a white sheet: (R (H + gap) + gap, K (W + gap) + gap, 3) uint8."""
    rows, columns, channels, height, width = images.shape
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    pixels = np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            sheet[top : top + height, left : left + width] = pixels[row, column]
    return sheet


def sheets(parts: list[tuple[str, Tensor]], columns: int) -> bytes:
    """Titled sheets of images (R, K, C, H, W) side by side, in rows of at most `columns`."""
    tiled = [(title, tile(images)) for title, images in parts]
    columns = min(columns, len(tiled))
    rows = math.ceil(len(tiled) / columns)
    height, width = (max(sheet.shape[axis] for _, sheet in tiled) / 50 for axis in (0, 1))
    figure = Figure(figsize=(columns * width, rows * (height + 0.35)), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, sheet) in zip(axes, tiled, strict=False):
        axis.set_title(title, fontsize=11)
        axis.imshow(sheet, interpolation="nearest")
    return png(figure)


def heat_map(values: NDArray[np.float64], rows: list[str], columns: list[str], title: str) -> bytes:
    """A matrix (rows, columns) in [0, 1] as colors with the numbers in them; the last row is at the bottom."""
    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.set_title(title, fontsize=11)
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", color="black" if value > 0.6 else "white", fontsize=9)
    return png(figure)


def bars(values: Sequence[float], labels: Sequence[str], notes: Sequence[str], title: str, unit: str) -> bytes:
    """One lying bar per rung, the last at the top as in the other figures, each with its value and a note.

    Args:
        values: 0 or more, such as the rate of each rung in nats; bottom first.
        labels: name of each.
        notes: what else to say of each, such as its active units; may be empty strings.
        title: of the figure.
        unit: of the values, along the axis.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(values)), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.barh(range(len(values)), values, color="C0")
    axis.set_yticks(range(len(values)), labels)
    widest = max([value for value in values if math.isfinite(value)], default=0)
    axis.set_xlim(0, 1.45 * widest or 1)  # room for the notes
    for place, (value, note) in enumerate(zip(values, notes, strict=True)):
        text = f" {value:.3g}" + (f"  ({note})" if note else "")
        axis.text(value if math.isfinite(value) else 0, place, text, va="center", fontsize=9)
    axis.set_xlabel(unit)
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def curve(
    x: Sequence[float], y: Sequence[float], levels: Mapping[str, float], title: str, *, x_label: str, y_label: str
) -> bytes:
    """A curve of few points, and horizontal lines to judge it by, each named in the legend.

    Args:
        x: where it was looked, rising.
        y: what was found there, 0 or more.
        levels: name -> height of each line, such as the distance of ancestral samples.
        title: of the figure.
        x_label: of the points; they are spaced evenly, for steps such as 1, 5, 20.
        y_label: of the heights.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.plot(range(len(x)), y, marker="o", color="C0")
    axis.set_xticks(range(len(x)), [f"{place:g}" for place in x])
    for number, (name, height) in enumerate(levels.items(), start=1):
        axis.axhline(height, color=f"C{number}", linestyle="--", label=f"{name}: {height:.3g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_title(title, fontsize=11)
    if levels:
        axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


_COLUMNS = 8
_STRIP_STEPS = (1, 2, 5, 10, 20)


@torch.no_grad()
def draw_samples(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> dict[str, bytes]:
    """Pictures that the model makes, PNG by name.

    Blocks (one rung varies, the others stay), the manifold of each rung's first two dims, reconstructions,
    samples, and Gibbs chains on the bottom rung.

    Args:
        model: in evaluation mode.
        images: test images (N, C, H, W) in [0, 1], on the generator's device.
        generator: of all that is drawn.
    """
    base = model.noise(6, generator)
    rungs = list(enumerate(model.latent_dims))
    blocks = [
        (f"rung {rung} varies ({dim} dims)", resample_rung(model, base, rung, _COLUMNS, generator))
        for rung, dim in rungs
    ]
    one = model.noise(1, generator)
    manifolds = [(f"rung {rung}, dims 0 and 1", manifold(model, one, rung, count=12)) for rung, _ in rungs]
    shown = len(images) // _COLUMNS * _COLUMNS or len(images)
    rows = images[:shown].view(-1, min(_COLUMNS, shown), *images.shape[1:])
    copies = model.mean_image(model.means(images[:shown])).view_as(rows)
    samples = model.mean_image(model.prior(model.noise(64, generator))).view(8, 8, *model.image_shape)
    chains = gibbs_strip(model, images[:6], _STRIP_STEPS, generator)
    steps = ", ".join(map(str, _STRIP_STEPS))
    columns = 2 if len(rungs) in (2, 4) else 3
    return {
        "blocks": sheets(blocks, columns=columns),
        "manifolds": sheets(manifolds, columns=columns),
        "reconstructions": sheets([("test images", rows), ("reconstructions", copies)], columns=2),
        "samples": sheets([("samples from the prior", samples)], columns=1),
        "gibbs": sheets([(f"images, then Gibbs steps {steps}", chains)], columns=1),
    }


def draw_scores(
    codes: Encodings, information: NDArray[np.float64], names: list[str], gibbs: GibbsCurve | None
) -> dict[str, bytes]:
    """Pictures of the numbers: the rate of each rung, the rung x factor matrix, the Gibbs curve."""
    rungs = [f"rung {rung}" for rung in range(len(codes.samples))]
    active = zip(active_units(codes.kl_dims, threshold=codes.threshold), codes.samples, strict=True)
    notes = [f"{on} of {samples.shape[1]} units active" for on, samples in active]
    figures = {"rates": bars(rates(codes.kl_dims).tolist(), rungs, notes, "rate of each rung", "nats per image")}
    if names:
        figures["information"] = heat_map(information[::-1], rungs[::-1], names, "information / entropy of the factor")
    if gibbs is not None:
        figures["gibbs_curve"] = curve(
            gibbs.steps,
            gibbs.distances,
            {"ancestral samples": gibbs.ancestral, "other test images": gibbs.start},
            "Gibbs chains on rung 0",
            x_label="steps from a test image",
            y_label="Frechet distance to test images",
        )
    return figures
