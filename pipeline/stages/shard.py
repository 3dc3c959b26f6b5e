"""The shard stage: the images of a source become WebDataset shards."""

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
    for warning in source.validate():
        report.line(f"{'':<9}note: {warning}")
    url = workspace.access.url
    manifest = run_sharding(
        source,
        config.data,
        url,
        session.resources,
        lambda done: report.progress(f"shard    {done:,} of {source.num_samples:,} samples"),
    )
    counts = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in ("train", "validation", "test"))
    size = sum(tar.num_bytes for tar in manifest.shards) / 1e6
    report.done("shard", f"{counts}; {len(manifest.shards)} tars, {size:.0f} MB in {url}")
