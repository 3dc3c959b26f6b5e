"""Text of `--help`, made from the settings and their descriptions."""

import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jobs.cli import UsageError
from pipeline.settings.parse import PRESETS
from pipeline.settings.schema import GROUPS, STAGES, Config, format_value, section_of

_INDENT = " " * 6  # of descriptions
_HEAD = f"""\
usage: python -m pipeline.run [key=value ...]

Trains hierarchical models of images: writes WebDataset shards, trains with Ray Train, evaluates the model, and
records everything in MLflow. Settings are given as `key=value` overrides. Stages: {", ".join(STAGES)}.
Running a command again skips every completed stage and resumes an interrupted one.

    python -m pipeline.run
    python -m pipeline.run stage=shard,train,evaluate data=fashion_mnist model=hvae train.steps=3000
    python -m pipeline.run stage=shard,tune,train,evaluate tune.param_space.model.latent_dims=18/9,9/6,6,6
    python -m pipeline.run data=images data.root=~/pictures model.latent_dims=4,4,10

`--help SECTION` describes one section, such as data, model, train or evaluate.
Exit codes: 0 success, 1 failure, 2 invalid argument, 130 interrupted.
"""


def help_text(sections: Sequence[str] = (), width: int = 120) -> str:
    """Return every key with its type, default and description, by section.

    Args:
        sections: Sections to describe, such as `train`; empty: all sections and the settings without a section.
        width: Columns of the text.

    Raises:
        UsageError: A section is unknown.
    """
    names = [name for name, field in Config.model_fields.items() if name in GROUPS or section_of(field)]
    for section in sections:
        if section not in names:
            raise UsageError(f"--help {section}: unknown section. Use one of {', '.join(names)}.")
    lines = [] if sections else _head()
    for name, field in Config.model_fields.items():
        if not sections or name in sections:
            lines += _section(name, field)
    return "\n".join(_wrap(line, width) for line in lines).strip("\n")


def _head() -> list[str]:
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    return [*_HEAD.splitlines(), "", _row("preset", "name or .yaml file", "", f"settings to start from: {presets}")]


def _section(name: str, field: FieldInfo) -> list[str]:
    """Return the lines of a section, or of a setting without a section."""
    if single := section_of(field):
        return ["", f"  {name}: {(single.__doc__ or '').splitlines()[0]}", *_rows(name, single.model_fields)]
    if name not in GROUPS:
        return _rows("", {name: field})
    members = GROUPS[name]
    default = field.get_default(call_default_factory=True).name
    lines = ["", _row(name, "|".join(members), default, f"name of the {name} section; its settings follow")]
    first, *others = (member.model_fields for member in members.values())
    shared = {key: field for key, field in first.items() if all(key in fields for fields in others)}
    lines += _rows(name, shared)
    for member, section in members.items():
        lines.append(f"  {name}={member}: {(section.__doc__ or '').splitlines()[0]}")
        fields = section.model_fields.items()
        lines += _rows(name, {key: field for key, field in fields if not _same(field, shared.get(key))})
    return lines


def _wrap(line: str, width: int) -> str:
    """Wrap the description below the head of a row; other lines are short and stay as they are."""
    head, newline, description = line.partition("\n")
    text = textwrap.fill(description, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)
    return head + newline + text


def _same(field: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and (field.default, field.description) == (other.default, other.description)


def _rows(section: str, fields: Mapping[str, FieldInfo]) -> list[str]:
    """Return a line for each setting of a section."""
    rows = []
    for name, field in fields.items():
        key, description = f"{section}.{name}".lstrip("."), field.description or ""
        if get_origin(field.annotation) is dict:
            rows.append(_row(f"{key}.KEY", "a/b/c|low..high", "", description))
        elif name != "name":
            kind, default = _type_name(field.annotation), ""
            if field.default is PydanticUndefined:
                kind += " (required)"
            else:
                default = format_value(field.default)
            rows.append(_row(key, kind, default, description))
    return rows


def _row(key: str, kind: str, default: str, description: str) -> str:
    """Return key, type and default, and the description after a line break."""
    return f"  {key:<28} {kind}{f' (default: {default})' if default else ''}\n{description}"


def _type_name(annotation: Any) -> str:
    """Return the name of a type for a reader: `a|b` for choices, `int,...` for lists."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(args[0])
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (Union, types.UnionType):
        return "|".join("none" if arg is type(None) else _type_name(arg) for arg in args)
    if origin is tuple:
        return f"{_type_name(args[0])},..."
    return {"Path": "path", "str": "text"}.get(annotation.__name__, str(annotation.__name__))
