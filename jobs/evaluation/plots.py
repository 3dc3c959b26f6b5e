"""Figures of an evaluation, as PNG bytes."""

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
from vlae.gibbs import GibbsCurve, gibbs_sequence
from vlae.metrics import active_units, rates
from vlae.models.base import HierarchicalModel
from vlae.traversals import manifold, resample_rung

_COLUMNS = 8
_MAX_FACTORS = 100  # in a figure, because matplotlib draws at most 65,535 pixels
_MAX_LABEL = 24  # characters of a factor's name, because longer ones leave no space for the figure
_GIBBS_STEPS = (1, 2, 5, 10, 20)


@torch.no_grad()
def draw_samples(model: HierarchicalModel, images: Tensor, generator: torch.Generator) -> dict[str, bytes]:
    """Return figures by name of what the model generates, and reconstructions of images (N, C, H, W) in [0, 1].

    In `blocks` only one rung varies, and in `manifolds` its first two latents. `gibbs` shows chains on the bottom rung.
    """
    base = model.noise(6, generator)
    rungs = list(enumerate(model.latent_dims))
    blocks = [
        (f"rung {rung} varies ({dim} dims)", resample_rung(model, base, rung, _COLUMNS, generator))
        for rung, dim in rungs
    ]
    center = model.noise(1, generator)
    manifolds = [(f"rung {rung}, dims 0 and 1", manifold(model, center, rung, count=12)) for rung, _ in rungs]
    count = len(images) // _COLUMNS * _COLUMNS or len(images)
    rows = images[:count].view(-1, min(_COLUMNS, count), *images.shape[1:])
    reconstructions = model.mean_image(model.means(images[:count])).view_as(rows)
    samples = model.mean_image(model.prior(model.noise(64, generator))).view(8, 8, *model.image_shape)
    chains = gibbs_sequence(model, images[:6], _GIBBS_STEPS, generator)
    steps = ", ".join(map(str, _GIBBS_STEPS))
    columns = 2 if len(rungs) in (2, 4) else 3
    return {
        "blocks": _image_grid(blocks, columns=columns),
        "manifolds": _image_grid(manifolds, columns=columns),
        "reconstructions": _image_grid([("test images", rows), ("reconstructions", reconstructions)], columns=2),
        "samples": _image_grid([("samples from the prior", samples)], columns=1),
        "gibbs": _image_grid([(f"images, then Gibbs steps {steps}", chains)], columns=1),
    }


def draw_metrics(
    codes: Encodings, information: NDArray[np.float64], names: Sequence[str], gibbs: GibbsCurve | None
) -> dict[str, bytes]:
    """Return figures by name: `rates`, `information` (L, K) of the first 100 factors, and `gibbs_curve` with chains."""
    rungs = [f"rung {rung}" for rung in range(len(codes.samples))]
    active = zip(active_units(codes.kl_dims, threshold=codes.threshold), codes.samples, strict=True)
    notes = [f"{count} of {samples.shape[1]} units active" for count, samples in active]
    figures = {"rates": bar_chart(rates(codes.kl_dims).tolist(), rungs, notes, "rate of each rung", "nats per image")}
    if names:
        title = "information / entropy of the factor"
        labels = [name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 3]}..." for name in names[:_MAX_FACTORS]]
        figures["information"] = heat_map(information[::-1, :_MAX_FACTORS], rungs[::-1], labels, title)
    if gibbs is not None:
        figures["gibbs_curve"] = line_chart(
            gibbs.steps,
            gibbs.distances,
            {"ancestral samples": gibbs.ancestral, "other test images": gibbs.start},
            "Gibbs chains on rung 0",
            x_label="steps from a test image",
            y_label="Frechet distance to test images",
        )
    return figures


def tile(images: Tensor, gap: int = 1) -> NDArray[np.uint8]:
    """Return images (R, K, C, H, W) in [0, 1] on a white sheet (R (H + gap) + gap, K (W + gap) + gap, 3) uint8."""
    rows, columns, channels, height, width = images.shape
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 4, 2).cpu().numpy()
    padded = np.pad(pixels, ((0, 0), (gap, 0), (0, 0), (gap, 0), (0, 0)), constant_values=255)
    sheet = padded.reshape(rows * (height + gap), columns * (width + gap), channels)
    return np.pad(np.repeat(sheet, 3 // channels, axis=2), ((0, gap), (0, gap), (0, 0)), constant_values=255)


def _image_grid(panels: Sequence[tuple[str, Tensor]], columns: int) -> bytes:
    """Draw titled sheets of images (R, K, C, H, W) side by side, at most `columns` in a row."""
    sheets = [(title, tile(images)) for title, images in panels]
    columns = min(columns, len(sheets))
    rows = math.ceil(len(sheets) / columns)
    height, width = (max(sheet.shape[axis] for _, sheet in sheets) / 50 for axis in (0, 1))
    figure = Figure(figsize=(columns * width, rows * (height + 0.35)), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, sheet) in zip(axes, sheets, strict=False):
        axis.set_title(title, fontsize=11)
        axis.imshow(sheet, interpolation="nearest")
    return png(figure)


def heat_map(values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str) -> bytes:
    """Draw a matrix in [0, 1] as colors with the numbers in them, the last row at the bottom; NaN becomes a dash."""
    height = 1 + 0.5 * len(rows) + 0.08 * max(map(len, columns))  # because the columns' names are slanted
    figure = Figure(figsize=(max(4, 1.6 + 0.75 * len(columns)), height), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.set_title(title, fontsize=11)
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", color="black" if value > 0.6 else "white", fontsize=9)
    return png(figure)


def bar_chart(values: Sequence[float], labels: Sequence[str], notes: Sequence[str], title: str, unit: str) -> bytes:
    """Draw a horizontal bar per value of 0 or more, with a note that may be empty, the last value at the top."""
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(values)), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.barh(range(len(values)), values, color="C0")
    axis.set_yticks(range(len(values)), labels)
    widest = max([value for value in values if math.isfinite(value)], default=0)
    axis.set_xlim(0, 1.45 * widest or 1)  # because the notes need space to the right
    for y, (value, note) in enumerate(zip(values, notes, strict=True)):
        text = f" {value:.3g}" + (f"  ({note})" if note else "")
        axis.text(value if math.isfinite(value) else 0, y, text, va="center", fontsize=9)
    axis.set_xlabel(unit)
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def line_chart(
    x: Sequence[float], y: Sequence[float], levels: Mapping[str, float], title: str, *, x_label: str, y_label: str
) -> bytes:
    """Draw values of 0 or more at evenly spaced points, and a horizontal reference line for each of `levels`."""
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.plot(range(len(x)), y, marker="o", color="C0")
    axis.set_xticks(range(len(x)), [f"{value:g}" for value in x])
    for index, (name, height) in enumerate(levels.items(), start=1):
        axis.axhline(height, color=f"C{index}", linestyle="--", label=f"{name}: {height:.3g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_title(title, fontsize=11)
    if levels:
        axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
