"""The words of `python -m jobs.submit`: what they ask for, and what must be refused before anything is sent."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs.cli import UsageError, parse_overrides

ACTIONS = ("list", "logs", "stop")
OWN = ("address", "name", "env", "wait")
_ADDRESS = "http://127.0.0.1:8265"
_CREDENTIALS = re.compile(r"//[^/\s]*@")
_HTTP = re.compile(r"https?://[^/\s]+/*")
_JOB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")  # Ray makes file names of it
_PATHS = re.compile(r"workspace|storage_path|data.root|data.cache_dir")


@dataclass(frozen=True)
class Command:
    """What is asked for."""

    action: str  # submit, or one of ACTIONS
    address: str  # of the cluster's dashboard
    job: str = ""  # its name; empty for list
    env: tuple[str, ...] = ()  # names of variables
    wait: bool = True
    words: tuple[str, ...] = ()  # of pipeline.run


def read_words(words: Sequence[str], environment: Mapping[str, str]) -> Command:
    """What the words ask for.

    Args:
        words: of the command line.
        environment: where `env=` takes variables from, and a missing `address=` its default.

    Raises:
        WordsError: a word is wrong.
    """
    action = words[0] if words and words[0] in ACTIONS else "submit"
    rest = list(words) if action == "submit" else list(words[1:])
    job = ""
    if action in ("logs", "stop"):
        if not rest or "=" in rest[0]:
            raise UsageError(f"{action} needs the name of a job: python -m jobs.submit {action} NAME; list shows them")
        job = rest.pop(0)
    own, others = _sorted_out(rest)
    address = _address(own.get("address") or environment.get("RAY_API_SERVER_ADDRESS") or _ADDRESS)
    if action != "submit":
        for word in [f"{key}={value}" for key, value in own.items() if key != "address"] + others:
            raise UsageError(f"{action} has no use for {word}: it takes address= only")
        return Command(action, address, job)
    _check_settings(others)
    wait = own.get("wait", "true")
    if wait not in ("true", "false"):
        raise UsageError(f"wait={wait} must be true or false")
    return Command(
        "submit", address, _job_name(own.get("name")), _variables(own.get("env", ""), environment), wait == "true",
        tuple(others),
    )  # fmt: skip


def _sorted_out(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our own words, and those of the pipeline."""
    overrides = parse_overrides(words)
    own = {key: value for key, value in overrides.items() if key in OWN}
    return own, [f"{key}={value}" for key, value in overrides.items() if key not in OWN]


def _address(address: str) -> str:
    if _CREDENTIALS.search(address):
        raise UsageError(
            f"address={address} must hold no credentials: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment"
        )
    if not _HTTP.fullmatch(address):
        raise UsageError(
            f"address={address} must be http(s)://HOST:PORT of the cluster's dashboard, such as http://HEAD:8265"
        )
    return address.rstrip("/")


def _job_name(name: str | None) -> str:
    if name is None:
        return f"vlae-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not _JOB_NAME.fullmatch(name):
        raise UsageError(f"name={name} must be letters, digits, '.', '_' and '-' only, at most 100")
    return name


def _variables(names: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    found = tuple(name for name in names.split(",") if name)
    for name in found:
        if "=" in name or not name.isidentifier():
            culprit = name.partition("=")[0]
            raise UsageError(f"env={culprit}... takes names alone, env=NAME,NAME: values come from the environment")
        if name not in environment:
            raise UsageError(f"env={name}: {name} is not set here; export it first, or leave it out")
    return found


def _check_settings(words: Sequence[str]) -> None:
    settings = dict(word.split("=", 1) for word in words)
    for key, value in settings.items():
        if _CREDENTIALS.search(value):
            raise UsageError(
                f"{key}={value} holds credentials, which would end up in logs: set them as environment variables and "
                "name these in env=NAME,NAME"
            )
        if _PATHS.fullmatch(key) and value not in ("", "none") and not value.startswith(("/", "s3://")):
            raise UsageError(
                f"{key}={value} is relative to a folder that the cluster removes: give an absolute path that every "
                "node sees"
            )
    if "ray.address" in settings:
        raise UsageError("ray.address is the cluster's own business here: name its dashboard with address=")
    if not settings.get("workspace"):
        raise UsageError("workspace= is missing: give the absolute path of a folder that every node sees")
