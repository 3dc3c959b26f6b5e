"""What MLflow's page of a run begins with: the block figure, the scores that matter, the command."""

from collections.abc import Mapping
from urllib.parse import urlencode

from jobs.cli import format_number

# Score, the range to expect, what it says; docs/metrics.md has all of them.
HEADLINE_METRICS = (
    ("elbo", "nats per image", "evidence lower bound, higher is better"),
    ("bits_per_dim", "0..8", "the same per pixel and channel, lower is better"),
    ("kl", "nats per image", "rate of all rungs together"),
    ("rung_compactness", "0..1", "is each factor held by one rung"),
    ("rung_modularity", "0..1", "does each rung hold one factor"),
    ("centroid_complexity_spearman", "-1..1", "do complex factors sit in higher rungs"),
    ("upper_rung_gain", "0..1", "what is lost when only the bottom rung is kept"),
    ("mig", "0..1", "mutual information gap"),
    ("mig_sup", "0..1", "the gap seen from the latents"),
    ("dci_disentanglement", "0..1", "does each latent serve one factor"),
    ("dci_completeness", "0..1", "is each factor served by one latent"),
    ("infom", "0..1", "modularity of the active latents"),
    ("infoc", "0..1", "compactness of the active latents"),
    ("factor_vae", "1/K..1", "FactorVAE score"),
    ("sap", "0..0.5", "separated attribute predictability"),
)


def picture(run_id: str, name: str) -> str:
    """Address of a run's picture, relative to MLflow's pages, so that it holds for any server and any port."""
    return f"get-artifact?{urlencode({'path': f'figures/{name}.png', 'run_uuid': run_id})}"


def description(run_id: str, scores: Mapping[str, float], command: str) -> str:
    """Markdown for a run or a model version.

    Args:
        run_id: that holds the pictures.
        scores: by name; those that are missing are left out.
        command: that repeats it.
    """
    rows = [
        f"| `{name}` | {format_number(scores[name])} | {span} | {text} |"
        for name, span, text in HEADLINE_METRICS
        if name in scores
    ]
    lines = [
        f"![Only one rung varies in each block]({picture(run_id, 'blocks')})",
        "",
        "| score on test images | value | range | |",
        "|---|---|---|---|",
        *rows,
        "",
        "The artifact `explorer.html` moves single latents and swaps whole rungs between images.",
        "",
        f"```\n{command}\n```",
    ]
    return "\n".join(lines)
