"""What MLflow raises, as errors that a user can mend: whether it is away, and why in a few words."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from jobs.errors import AGAIN, AwayError, UserError


class TrackingError(UserError):
    """MLflow did not do what it was asked.

    Attributes:
        uri: where it is.
        reason: what it said.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"MLflow at {uri} failed: {reason}; run {AGAIN} again to go on")
        self.uri, self.reason = uri, reason


class TrackingAwayError(TrackingError, AwayError):
    """It does not answer, or cannot work now."""


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises in a `with` block into a TrackingError."""
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() >= 500:  # type: ignore[no-untyped-call]
            raise TrackingAwayError(uri, _first_line(_root(error))) from error
        raise TrackingError(uri, _first_line(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise TrackingAwayError(uri, _first_line(_root(error))) from error


def _root(error: BaseException) -> BaseException:
    """What an error comes from: MLflow wraps those of the network in layers of addresses."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
