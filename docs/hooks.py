"""mkdocs hooks: generated reference tables, and pages that include a file of the repository."""

import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jobs.evaluation.registry import metrics_markdown
from pipeline.settings.schema import GROUPS, Config, format_value, section_of


def settings_markdown() -> str:
    """Return one table of settings per group, with defaults and descriptions."""
    general, sections = [], []
    for name, field in Config.model_fields.items():
        if name in GROUPS:
            default = field.get_default(call_default_factory=True).name
            sections.append(
                f"## {name}\n\n`{name}=` chooses the group: {', '.join(f'`{key}`' for key in GROUPS[name])} "
                f"(default `{default}`).\n"
            )
            for key, group in GROUPS[name].items():
                sections.append(f"### {name}={key}\n\n{_summary(group)}\n\n{_table(name, group.model_fields)}")
        elif section := section_of(field):
            sections.append(f"## {name}\n\n{_summary(section)}\n\n{_table(name, section.model_fields)}")
        else:
            general.append(_row(name, field))
    return "\n\n".join(["## General\n\n" + _HEAD + "\n".join(general), *sections])


_HEAD = "| key | default | description |\n|---|---|---|\n"


def _summary(section: Any) -> str:
    return (section.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    return _HEAD + "\n".join(_row(f"{prefix}.{name}", field) for name, field in fields.items() if name != "name")


def _row(key: str, field: FieldInfo) -> str:
    default = (
        "required"
        if field.default is PydanticUndefined and field.default_factory is None
        else format_value(field.get_default(call_default_factory=True))
    )
    text = (field.description or "").replace("|", "\\|")
    execution = isinstance(field.json_schema_extra, dict) and "execution" in field.json_schema_extra
    return f"| `{key}` | {f'`{default}`' if default else ''} | {text}{' *(execution)*' if execution else ''} |"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the placeholders of a page: `<!-- settings -->`, `<!-- metrics -->` and `<!-- include PATH -->`.

    Args:
        markdown: Source of a page.

    Returns:
        The source with generated tables and included files.
    """
    root = Path(__file__).parents[1]
    markdown = re.sub(r"<!-- include (\S+) -->", lambda match: (root / match[1]).read_text(), markdown)
    for marker, generate in (("<!-- settings -->", settings_markdown), ("<!-- metrics -->", metrics_markdown)):
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown
