"""What failures of S3 mean: which may pass, and what to tell the user of the others."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import boto3.exceptions
import botocore.exceptions

from jobs.errors import AwayError, UserError

_CREDENTIALS = re.compile(r"//[^/]*@")
ABSENT = {"404", "NoSuchKey", "NotFound"}
LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_REFUSED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_CHANGED_ON_THE_WAY = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class CutError(Exception):
    """A reply ended before its last byte, or its bytes are not those that were stored."""


def code_of(error: botocore.exceptions.ClientError) -> str:
    """The code that S3 gave: a name, or a HTTP status where the reply has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def may_pass(error: Exception) -> bool:
    """Whether a second try may go well, of what boto3 has not tried again already."""
    if isinstance(error, botocore.exceptions.ClientError):
        return code_of(error) in _CHANGED_ON_THE_WAY
    if isinstance(error, boto3.exceptions.S3UploadFailedError):  # it keeps the cause as text only
        return any(code in str(error) for code in _CHANGED_ON_THE_WAY)
    # botocore can stumble over the headers of a failed GET, and give these instead of the failure.
    stumbles = AttributeError, TypeError, ConnectionError, botocore.exceptions.ConnectionClosedError
    return isinstance(error, (CutError, *stumbles))


@contextmanager
def explained(address: str) -> Iterator[None]:
    """What went wrong with an address, in one line that says what to do.

    botocore's own messages hold no secrets, but an endpoint may: only its host is told.
    """
    try:
        yield
    except UserError:
        raise
    except botocore.exceptions.ClientError as error:
        raise _advice(address, code_of(error), str(error)) from error
    except boto3.exceptions.S3UploadFailedError as error:
        code = next((code for code in sorted(_REFUSED | {"NoSuchBucket"}) if f"({code})" in str(error)), "")
        raise _advice(address, code, str(error)) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise UserError(f"{address}: no credentials for S3; {advice}") from error
    except botocore.exceptions.ParamValidationError as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}: set store= to another") from error
    except botocore.exceptions.BotoCoreError as error:  # some of these are an OSError too
        raise _silence(address, error) from error
    except OSError as error:
        raise UserError(f"{error.filename or address}: {error.strerror or error}; mend that and run again") from error
    except Exception as error:
        raise _silence(address, error) from error


def _silence(address: str, error: Exception) -> AwayError:
    reason = _CREDENTIALS.sub("//", " ".join(str(error).split())) or type(error).__name__
    return AwayError(f"{address}: S3 does not answer as it should ({reason}); run again when it does")


def _advice(address: str, code: str, text: str) -> UserError:
    if code in _REFUSED:
        advice = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
        return UserError(f"{address}: S3 refuses the credentials ({code}): {advice}")
    if code == "NoSuchBucket":
        return UserError(f"{address}: the bucket does not exist: create it, or set store= to another")
    return AwayError(f"{address}: S3 failed ({' '.join(text.split())}): run again when it works")
