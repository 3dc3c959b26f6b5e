"""The shard stage: the images of a source become WebDataset shards."""

from jobs.data.sources.base import identifier_notes
from jobs.data.sources.listing import describe_left_out
from jobs.shard import run_sharding
from pipeline.session import Session


def shard(session: Session) -> None:
    """Write the shards, or what an interrupted command left of them.

    Raises:
        UserError: The source or its images cannot be read, or the shards cannot be written.
    """
    workspace, config, report = session.workspace, session.config, session.report
    source = workspace.source = workspace.source or workspace.open_source(fetch=True)
    if "train" in config.stage:
        session.count_parameters(source.image_shape)  # a model that does not fit fails before the work starts
    report.progress("shard    checking the source ...")
    identifiers = identifier_notes(source.factors, source.num_samples, config.data.factors)
    for warning in filter(None, (*source.validate(), describe_left_out(source.left_out), *identifiers)):
        report.line(f"{'':<9}note: {warning}")
    url, total = workspace.access.url, source.num_samples
    manifest = run_sharding(
        source,
        config.data,
        url,
        session.resources,
        lambda done: report.progress(f"shard    {done:,} of {total:,} samples", done, total),
    )
    counts = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in ("train", "validation", "test"))
    size = sum(tar.num_bytes for tar in manifest.shards) / 1e6
    report.done("shard", f"{counts}; {len(manifest.shards)} tars, {size:.0f} MB in {url}")
    if manifest.skipped_names:
        report.line(f"{'':<9}note: skipped {manifest.skipped_names}")
