"""Records of completed work that a workspace keeps as JSON files: run.json, train.json and evaluate.json."""

import json
import uuid
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import CorruptedError, os_error_reason
from jobs.files import write_json


class Record(BaseModel):
    """A JSON file that is read and written as a whole. Unknown fields and another version are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    FILENAME: ClassVar[str]

    version: Literal[1] = 1

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the record at `path`, or None if the file does not exist.

        Raises:
            CorruptedError: The file cannot be read or is not a record of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptedError(f"{path}: cannot read ({os_error_reason(error)}). Check its permissions.") from error
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"])) or "content"
            raise CorruptedError(
                f"{path}: invalid record ({field}: {fault['msg']}). Delete the file and run the command again."
            ) from error

    def write(self, path: Path) -> None:
        """Write the record to `path` atomically and create its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(self.model_dump_json()))


class TrackingLocation(BaseModel):
    """Where MLflow keeps a run: `tracking.uri` (empty: the workspace's database), `tracking.experiment` and run ID."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    experiment: str
    run_id: str


class TrackedRecord(Record):
    """A record with an MLflow run. It is written before the run is created, so that a kill never causes a second run.

    Attributes:
        key: Random key by which the run is found in MLflow.
        tracking: The MLflow run, None until it is created.
    """

    key: str = Field(default_factory=lambda: uuid.uuid4().hex)
    tracking: TrackingLocation | None = None


class RunRecord(TrackedRecord):
    """run.json: what a training, or the evaluation of a registered model, is defined by.

    Attributes:
        settings: Settings that define the training, in command-line spelling; empty for a registered model.
        data_fingerprint: Hash of the shards.
        storage_path: Setting `storage_path` of the command.
        data: Settings `data.root` and `data.on_error` of the command, by their names in the section.
    """

    FILENAME: ClassVar[str] = "run.json"

    settings: dict[str, str] = {}
    data_fingerprint: str = ""
    storage_path: str = ""
    data: dict[str, str] = {}


class TrainRecord(Record):
    """train.json: MLflow run of a finished training; folder name, step and weights of its last checkpoint."""

    FILENAME: ClassVar[str] = "train.json"

    run_id: str
    checkpoint: str
    step: int
    weights_sha256: str


class EvaluateRecord(Record):
    """evaluate.json: result of a finished evaluation.

    Attributes:
        key: Hash of the evaluation's settings and of the tracking location.
        weights_sha256: Hash of the evaluated weights.
        model_uri: Registered version of the evaluated model.
        metrics: Metrics on test images by name.
        run_id: ID of the evaluation's own MLflow run; empty if it belongs to the run of the training.
    """

    FILENAME: ClassVar[str] = "evaluate.json"

    key: str
    weights_sha256: str
    model_uri: str
    metrics: dict[str, float]
    run_id: str = ""
