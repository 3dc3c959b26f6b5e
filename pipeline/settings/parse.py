"""From `key=value` words to a validated configuration, or one line that says which word is wrong."""

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.cli import UsageError, parse_overrides
from pipeline.settings.schema import GROUPS, Config, defining, run_settings, section_of

SPACE = "tune.param_space."  # what the keys of a search space begin with
PRESETS = Path(__file__).with_name("presets")
_HELP = "--help lists every key"


def read_config(words: Sequence[str]) -> Config:
    """The configuration of a command.

    Args:
        words: `key=value` each; `preset=` is read first, wherever it stands, and the others override it.

    Raises:
        UsageError: a word is not key=value, a key is unknown or given twice, or a value is not allowed.
    """
    updates: dict[str, Any] = dict(parse_overrides(words))
    preset = updates.pop("preset", None)
    if "resume" in updates:
        return _resumed(updates, preset)
    if preset is None:
        return apply(Config(), updates)
    chosen = read_preset(preset)
    return apply(Config(), {**_compatible(chosen, updates), **updates})


def _resumed(updates: dict[str, Any], preset: str | None) -> Config:
    """The configuration of a run that goes on: its own settings, and words that change nothing of what it makes."""
    name = updates["resume"]
    words = apply(Config(), {key: updates[key] for key in ("resume", "workspace") if key in updates})
    path = words.workspace / "runs" / name / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        settings: dict[str, str] = record["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"resume={name}: {path} cannot be read ({error}): runs/ of the workspace has all names"
        ) from None
    recorded = apply(Config(), settings)
    tracking = record.get("tracking", {})
    places = {f"tracking.{key}": tracking[key] for key in ("uri", "experiment") if key in tracking}
    places["storage_path"] = record.get("storage_path", "")
    config = apply(recorded, {**places, **(read_preset(preset) if preset else {}), **updates})
    before, now = run_settings(recorded), run_settings(config)
    changed = [f"{key} {before.get(key, '(none)')} -> {now[key]}" for key in now if now[key] != before.get(key)]
    if changed:
        raise UsageError(
            f"resume={name} would change what it makes ({', '.join(changed)}): leave these words out, or start a new "
            f"run from its newest checkpoint with init_from={name}"
        )
    return config


def _compatible(preset: dict[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """The preset without the settings of a group member that the command replaces by another."""
    replaced = [group for group in GROUPS if group in updates and updates[group] != preset.get(group)]
    return {key: value for key, value in preset.items() if key.partition(".")[0] not in replaced}


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a named preset or a YAML file, as dotted keys.

    Raises:
        UsageError: no such preset, or not a mapping of settings.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    try:
        if path.parent == PRESETS and path.stem not in known:
            raise FileNotFoundError
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "--help lists them;"
        raise UsageError(f"preset={name} does not exist; {hint} a .yaml file is one too") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"preset={name} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"preset={name} must be a mapping of settings, such as 'train.steps: 1000'")
    return _flatten(content)


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def apply(config: Config, updates: Mapping[str, Any]) -> Config:
    """A configuration with some settings changed: the one door for commands, presets and searches.

    Args:
        config: where to start from.
        updates: dotted key -> value, as text or typed. `model=NAME` and `data=NAME` are applied first
            and start that section anew.

    Raises:
        UsageError: as for `read_config`.
    """
    tree = config.model_dump()
    for group, members in GROUPS.items():
        chosen = str(updates.get(group, tree[group]["name"]))
        if chosen not in members:
            raise UsageError(_unknown_value(group, chosen, list(members)))
        if chosen != tree[group]["name"]:
            tree[group] = {"name": chosen}
    chosen_members = {group: tree[group]["name"] for group in GROUPS}
    for key, value in updates.items():
        _check_key(key, chosen_members)
        section, _, name = key.partition(".")
        if key.startswith(SPACE):
            tree["tune"]["param_space"][key.removeprefix(SPACE)] = value
        elif name:
            tree[section][name] = value
        elif key not in GROUPS:
            tree[key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def known_keys() -> dict[str, list[str]]:
    """Every key, with the group members (`data=images`) it belongs to, if it is not for all."""
    keys: dict[str, list[str]] = {"preset": []}
    for name, field in Config.model_fields.items():
        if name in GROUPS:
            keys[name] = []
            for member, choice in GROUPS[name].items():
                for setting in choice.model_fields:
                    if setting != "name":
                        keys.setdefault(f"{name}.{setting}", []).append(f"{name}={member}")
        elif section := section_of(field):
            keys |= {f"{name}.{setting}": [] for setting in section.model_fields if f"{name}.{setting}." != SPACE}
        else:
            keys[name] = []
    return keys


@cache
def searchable_keys() -> list[str]:
    """The settings that a search may try values of: what defines a training, but its data and its length."""
    keys = [
        "preset",
        "seed",
        "model",
        *(f"model.{name}" for member in GROUPS["model"].values() for name in defining(member)),
    ]
    for name in ("objective", "progressive", "train"):
        section = section_of(Config.model_fields[name])
        keys += [f"{name}.{setting}" for setting in defining(section)] if section else []
    return [key for key in dict.fromkeys(keys) if key != "train.steps"]


def _check_key(key: str, chosen: Mapping[str, str]) -> None:
    keys = known_keys()
    if key.startswith(SPACE):
        allowed: dict[str, list[str]] = {f"{SPACE}{one}": [] for one in searchable_keys()}
        if key not in allowed and key.removeprefix(SPACE) in keys:
            raise UsageError(
                f"'{key}': a search tries settings of the model and of its training that change what is made, and "
                f"'{key.removeprefix(SPACE)}' is none; the steps of a trial are tune.steps"
            )
        keys = allowed
    if key not in keys or key == "preset":
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        raise UsageError(f"unknown key '{key}'; " + (f"did you mean '{near[0]}'?" if near else _HELP))
    members = keys[key]
    group = key.partition(".")[0]
    if members and f"{group}={chosen[group]}" not in members:
        owners = "|".join(member.partition("=")[2] for member in members)
        raise UsageError(f"'{key}' belongs to {group}={owners}, and this run has {group}={chosen[group]}")


def _unknown_value(key: str, value: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{key}={value} is not one of {', '.join(allowed)}{hint}"


def _explain(error: ValidationError) -> str:
    """The first thing that pydantic found, in the words of the command line."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if not isinstance(part, int)]
    if len(parts) > 1 and parts[0] in GROUPS and parts[1] in GROUPS[parts[0]]:
        del parts[1]  # the tag of the group member
    key = ".".join(parts)
    if first["type"] == "missing":
        field = GROUPS[parts[0]][str(first["loc"][1])].model_fields[parts[-1]]
        return f"{key} is missing: set it to a {field.description}"
    if first["type"] == "literal_error":
        allowed = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return _unknown_value(key, str(first["input"]), allowed)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and (not key or message.startswith(key + ".")):
        return message  # a rule over several settings names them itself
    value = ",".join(map(str, first["input"])) if isinstance(first["input"], list | tuple) else first["input"]
    return f"{key}={value}: {message[:1].lower()}{message[1:]}"
