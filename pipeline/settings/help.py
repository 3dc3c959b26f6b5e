"""The text of --help, made from the settings themselves."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.settings.parse import PRESETS
from pipeline.settings.schema import GROUPS, STAGES, Config, section_of, spell

_HEAD = f"""\
usage: python -m pipeline.run key=value ...

From images to hierarchical features: writes WebDataset shards, trains a model with Ray Train, scores it,
and records everything in MLflow. Stages: {", ".join(STAGES)}. The same command again does nothing twice;
after a kill it goes on.

    python -m pipeline.run
    python -m pipeline.run stage=shard,train,evaluate data=fashion_mnist model=hvae train.steps=3000
    python -m pipeline.run stage=shard,tune,train,evaluate tune.param_space.model.latent_dims=18/9,9/6,6,6
    python -m pipeline.run data=images data.root=~/pictures model.latent_dims=4,4,10

exit code: 0 well, 1 failed, 2 a wrong word, 130 interrupted
"""


def help_text() -> str:
    """Every key with its type, default and meaning, grouped by section."""
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    lines = [_HEAD, _row("preset", "name or .yaml file", "", f"settings to start from: {presets}")]
    for name, field in Config.model_fields.items():
        if name in GROUPS:
            default = field.get_default(call_default_factory=True).name
            lines += ["", _row(name, "|".join(GROUPS[name]), default, "chooses the section below")]
            shared = _shared(name)
            lines += _rows(name, shared)
            for member, choice in GROUPS[name].items():
                lines.append(f"  {name}={member}: {(choice.__doc__ or '').splitlines()[0]}")
                own = {key: field for key, field in choice.model_fields.items() if not _same(field, shared.get(key))}
                lines += _rows(name, own)
        elif section := section_of(field):
            lines += ["", f"  {name}: {(section.__doc__ or '').splitlines()[0]}"]
            lines += _rows(name, section.model_fields)
        else:
            lines.append(_field_row(name, field))
    return "\n".join(lines)


def _shared(group: str) -> dict[str, FieldInfo]:
    """The settings that all members of a group have, as the first has them."""
    members = list(GROUPS[group].values())
    return {
        key: field for key, field in members[0].model_fields.items() if all(key in one.model_fields for one in members)
    }


def _same(field: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and (field.default, field.description) == (other.default, other.description)


def _rows(prefix: str, fields: dict[str, FieldInfo]) -> list[str]:
    return [_field_row(f"{prefix}.{name}", field) for name, field in fields.items() if name != "name"]


def _field_row(key: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is dict:
        return _row(f"{key}.KEY", "a/b/c|low..high", "", field.description or "")
    default = "required" if field.default is PydanticUndefined else spell(field.default)
    return _row(key, _type_name(field.annotation), default, field.description or "")


def _row(key: str, kind: str, default: str, meaning: str) -> str:
    return f"  {key:<28} {kind:<24} {default:<18} {meaning}"


def _type_name(annotation: Any) -> str:
    """A type as a person would say it: `a|b` for choices, `int,...` for lists."""
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
