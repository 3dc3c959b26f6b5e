"""The description of a run in MLflow: the block figure, the headline metrics, the command."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from jobs.cli import format_number
from jobs.evaluation.registry import HEADLINE_METRICS


def picture(run_id: str, name: str) -> str:
    """Return the address of a run's figure `name` (without `.png`).

    The address is relative to MLflow's pages so that it is valid on any server and port.
    """
    return f"get-artifact?{urlencode({'path': f'figures/{name}.png', 'run_uuid': run_id})}"


def description(run_id: str, metrics: Mapping[str, float], command: str, notes: Sequence[str] = ()) -> str:
    """Describe a run or a model version in Markdown, with what its evaluation left out (`notes`)."""
    rows = [
        f"| `{metric.name}` | {format_number(metrics[metric.name])} | {metric.range} | {metric.headline} |"
        for metric in HEADLINE_METRICS
        if metric.name in metrics
    ]
    lines = [
        f"![Only one rung varies in each block]({picture(run_id, 'blocks')})",
        "",
        "| metric on test images | value | range | |",
        "|---|---|---|---|",
        *rows,
        "",
        *(f"- {note}\n" for note in notes),
        "The artifact `explorer.html` moves single latents and swaps whole rungs between images.",
        "",
        f"```\n{command}\n```",
    ]
    return "\n".join(lines)
