"""From `key=value` overrides to validated settings, or to one line that names the invalid override."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.cli import UsageError, parse_overrides, refuse_credentials
from jobs.errors import CorruptedError, first_line, os_error_reason, suggestion
from pipeline.records import RunRecord
from pipeline.settings.schema import GROUPS, Config, defining_fields, run_settings, section_of

SPACE_PREFIX = "tune.param_space."  # of the keys of a search space
PRESETS = Path(__file__).with_name("presets")


def read_config(arguments: Sequence[str]) -> Config:
    """Return the validated settings of a command.

    Args:
        arguments: `key=value` overrides. A `preset` is applied before all others.

    Raises:
        UsageError: An argument is not `key=value`, a key is unknown or given twice, or a value is invalid.
    """
    overrides: dict[str, Any] = dict(parse_overrides(arguments))
    name = overrides.pop("preset", None)
    preset = {} if name is None else read_preset(name)
    for key in {"resume", "init_from"} & overrides.keys():
        overrides[key] = _complete_run_name(key, overrides[key], {**preset, **overrides}.get("workspace"))
    if "resume" in overrides:
        return _resumed_config(overrides["resume"], preset, overrides)
    # The settings of a group member in the preset do not apply if the command chooses another member.
    replaced = [group for group in GROUPS if group in overrides and overrides[group] != preset.get(group)]
    kept = {key: value for key, value in preset.items() if key.partition(".")[0] not in replaced}
    return apply_overrides(Config(), {**kept, **overrides})


def _complete_run_name(key: str, name: str, workspace: Any) -> str:
    """Return the name of the only run in a workspace that begins with `name`; other names are returned unchanged.

    Raises:
        UsageError: Several runs begin with the name.
    """
    folder = apply_overrides(Config(), {} if workspace is None else {"workspace": workspace}).workspace / "runs"
    matches = sorted(path.name for path in folder.glob("*") if path.name.startswith(name)) if name else []
    if len(matches) > 1 and name not in matches:
        raise UsageError(
            f"{key}={name}: {len(matches)} runs begin with this name ({', '.join(matches[:5])}). Give more of the name."
        )
    return matches[0] if len(matches) == 1 else name


def _resumed_config(name: str, preset: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    # Overrides may change only how and where the run is continued.
    config = apply_overrides(Config(), {key: overrides[key] for key in ("resume", "workspace") if key in overrides})
    path = config.workspace / "runs" / name / RunRecord.FILENAME
    try:
        record = RunRecord.read(path)
    except CorruptedError as error:
        raise UsageError(f"resume={name}: {error}") from None
    if record is None or not record.settings:
        raise UsageError(f"resume={name}: {path} not found. Available runs are listed in {path.parents[1]}.")
    data = {f"data.{name}": overrides.get(f"data.{name}", value) for name, value in record.data.items()}
    recorded = apply_overrides(Config(), record.settings | data)
    location = {"storage_path": record.storage_path}
    if record.tracking:
        location |= {"tracking.uri": record.tracking.uri, "tracking.experiment": record.tracking.experiment}
    config = apply_overrides(recorded, {**location, **preset, **overrides})
    before, after = run_settings(recorded), run_settings(config)
    changes = [f"{key} {before.get(key, '(none)')} -> {after[key]}" for key in after if after[key] != before.get(key)]
    if changes:
        raise UsageError(
            f"resume={name}: the overrides change its output ({', '.join(changes)}). Remove them, or start a new run "
            f"from its newest checkpoint with init_from={name}."
        )
    return config


def read_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset, by dotted key.

    Args:
        name: Name of a preset of this package, or path of a `.yaml` file.

    Raises:
        UsageError: The preset does not exist, is not a mapping of settings, or contains credentials.
    """
    names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names:
            raise UsageError(f"preset={name}: not found. {suggestion(name, names, 'See --help.')}")
        path = PRESETS / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
        settings = _flatten(content) if isinstance(content, dict) else None
    except FileNotFoundError:
        raise UsageError(f"preset={name}: not found. Set it to the path of a .yaml file.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = os_error_reason(error) if isinstance(error, OSError) else first_line(error)
        raise UsageError(f"preset={name}: cannot read ({reason}). Check the file.") from None
    except Exception as error:  # because PyYAML raises ValueError for dates and RecursionError, too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"preset={name}: invalid YAML ({reason}). Check the file.") from None
    if settings is None:
        raise UsageError(f"preset={name}: not a mapping. Write settings such as 'train.steps: 1000'.")
    for key, value in settings.items():
        refuse_credentials(key, value)
    return settings


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return validated settings with some values replaced. Commands, presets and trials all use this function.

    Args:
        config: Settings to start from.
        overrides: Values by dotted key, as text or typed. `model=NAME` and `data=NAME` are applied first and reset
            their section.

    Raises:
        UsageError: A key is unknown or a value is invalid.
    """
    tree = config.model_dump()
    for group, members in GROUPS.items():
        chosen = str(overrides.get(group, tree[group]["name"]))
        if chosen not in members:
            raise UsageError(_invalid_choice(group, chosen, list(members)))
        if chosen != tree[group]["name"]:
            tree[group] = {"name": chosen}
    chosen_members = {group: tree[group]["name"] for group in GROUPS}
    for key, value in overrides.items():
        _check_key(key, chosen_members)
        section, _, name = key.partition(".")
        if key.startswith(SPACE_PREFIX):
            tree["tune"]["param_space"][key.removeprefix(SPACE_PREFIX)] = value
        elif name:
            tree[section][name] = value
        elif key not in GROUPS:
            tree[key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def setting_keys() -> dict[str, list[str]]:
    """Return every key with the group members it belongs to, such as `data=images`; none if it always applies."""
    keys: dict[str, list[str]] = {"preset": []}
    for name, field in Config.model_fields.items():
        if name in GROUPS:
            keys[name] = []
            for member, section in GROUPS[name].items():
                for setting in section.model_fields:
                    if setting != "name":
                        keys.setdefault(f"{name}.{setting}", []).append(f"{name}={member}")
        elif single := section_of(field):
            keys |= {f"{name}.{setting}": [] for setting in single.model_fields}
        else:
            keys[name] = []
    del keys[SPACE_PREFIX.rstrip(".")]
    return keys


@cache
def searchable_keys() -> list[str]:
    """Return the keys that a search may vary: settings that define a training, without its data and its length."""
    keys = ["preset", "seed", "model"]
    keys += [f"model.{name}" for member in GROUPS["model"].values() for name in defining_fields(member)]
    for name in ("objective", "progressive", "train"):
        section = section_of(Config.model_fields[name])
        keys += [f"{name}.{setting}" for setting in defining_fields(section)] if section else []
    return [key for key in dict.fromkeys(keys) if key != "train.steps"]


def _check_key(key: str, chosen: Mapping[str, str]) -> None:
    keys = setting_keys()
    if key.startswith(SPACE_PREFIX):
        searched = key.removeprefix(SPACE_PREFIX)
        if searched in keys and searched not in searchable_keys():
            raise UsageError(
                f"{key}: {searched} cannot be searched. Search settings that define the model or its training; "
                "tune.steps sets the steps of a trial."
            )
        keys = {f"{SPACE_PREFIX}{name}": [] for name in searchable_keys()}
    if key not in keys or key == "preset":
        raise UsageError(f"{key}: unknown key. {suggestion(key, keys, 'See --help.')}")
    members = keys[key]
    group = key.partition(".")[0]
    if members and f"{group}={chosen[group]}" not in members:
        owners = "|".join(member.partition("=")[2] for member in members)
        raise UsageError(f"{key}: not a setting of {group}={chosen[group]}. It belongs to {group}={owners}.")


def _invalid_choice(key: str, value: str, choices: Sequence[str]) -> str:
    return f"{key}={value}: not one of {', '.join(choices)}. {suggestion(value, choices, 'See --help.')}"


def _explain(error: ValidationError) -> str:
    """Return pydantic's first error in the form of the command's messages."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not isinstance(part, int)]
    if len(path) > 1 and path[0] in GROUPS and path[1] in GROUPS[path[0]]:
        del path[1]  # pydantic's tag of the group member
    key = ".".join(path)
    if first["type"] == "missing":
        field = GROUPS[path[0]][str(first["loc"][1])].model_fields[path[-1]]
        return f"{key}: missing. Set it to the {field.description}."
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return _invalid_choice(key, str(first["input"]), choices)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and (not key or message.startswith(key + ".")):
        return message  # a rule over several settings names them itself
    value = ",".join(map(str, first["input"])) if isinstance(first["input"], list | tuple) else first["input"]
    return f"{key}={value}: {message[:1].lower()}{message[1:]}{'' if message.endswith('.') else '. See --help.'}"
