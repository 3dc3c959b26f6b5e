"""Settings that every dataset shares; those of each are in jobs/data/sources/config.py."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from vlae.config import SettingsModel

# Marks a setting of how and where a job runs, which does not change what it makes: two commands that
# differ in such settings only are the same dataset or the same run.
EXECUTION: JsonDict = {"execution": True}

# Ray workers run in folders of their own: a relative path would mean another place there.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: Path(path).expanduser().absolute())]


def none_word(value: Any) -> Any:
    """Turn the command line's `none` into None."""
    return None if value == "none" else value


class BaseDataConfig(SettingsModel):
    """What every dataset shares: how it is split, cut into shards, and read."""

    validation_fraction: float = Field(
        0.05, ge=0, lt=0.5, description="share of the samples, by hash of the key, kept for validation"
    )
    test_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share kept for the test split, where the publisher gives none"
    )
    samples_per_task: int = Field(
        4096, ge=1, description="samples that one shard task reads, at most one tar per split"
    )
    encoding: Literal["npy", "png"] = Field(
        "npy", description="of the images in the tars: npy is raw and fast, png two to ten times smaller"
    )
    cache_dir: Annotated[AbsolutePath | None, BeforeValidator(none_word)] = Field(
        None,
        description="node-local copies of what is on S3 or in PNG; none: in the workspace",
        json_schema_extra=EXECUTION,
    )
    cache_bytes: int = Field(
        100 * 2**30,
        ge=2**20,
        description="most bytes of such copies; the oldest make room",
        json_schema_extra=EXECUTION,
    )


class BaseFilesConfig(BaseDataConfig):
    """A dataset that its publisher gives as files."""

    root: AbsolutePath = Field(..., description="folder with the publisher's files", json_schema_extra=EXECUTION)
