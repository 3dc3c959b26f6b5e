"""Base of the JSON records that a workspace keeps of completed work: run.json, train.json, search.json and others."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.errors import CorruptedError, os_error_reason
from jobs.files import write_json


class Record(BaseModel):
    """A record is read and written as a whole. Unknown fields and another version are errors.

    Attributes:
        version: Version of the record's format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the record at `path`, or None if there is no file.

        Args:
            path: File of the record.

        Returns:
            The record.

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
            location = ".".join(map(str, fault["loc"]))
            raise CorruptedError(
                f"{path}: invalid record ({location or 'content'}: {fault['msg']}). Delete the file and run the command "
                "again."
            ) from error

    def write(self, path: Path) -> None:
        """Write the record to `path` atomically, and make its folder.

        Args:
            path: File of the record.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(self.model_dump_json()))
