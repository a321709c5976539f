"""The settings as a table: for the `config` command, and for `docs/settings.md`.

Decides how a form or value is written for people; secrets are never among what it gives out.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker.core.redact import MASK, without_userinfo
from worker.settings.model import Settings
from worker.settings.values import Listen, WeightedStream

_BY_TYPE: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    SecretStr: "text",
    Path: "a path",
    Listen: "[host]:port",
}
_BY_NAME = {
    "WORKER_STREAMS": "name:weight, separated by commas",
    "WORKER_NAMESPACES": "names, separated by commas",
    "WORKER_REGIONS": "names, separated by commas",
    "WORKER_UI_LINKS": "true, false or a URL",
    "WORKER_NAME": "a name",
    "WORKER_GROUP": "a name",
    "NOMAD_NAMESPACE": "a name",
    "NOMAD_REGION": "a name",
    "NOMAD_ADDR": "a URL",
    "REDIS_URL": "a URL",
}
_MADE_AT_START = {"WORKER_NAME": "host name and a random suffix"}


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. `value` is empty where the table is made without settings, or where it is unset."""

    name: str
    form: str
    unit: str
    default: str
    why: str
    value: str = ""
    changed: bool = False
    """Whether the environment gives it, and another value than the default."""


def reference(settings: Settings | None = None) -> list[Row]:
    """All settings in the order of the code; with `settings` also their values, secrets masked."""
    rows = []
    for attribute, field in Settings.model_fields.items():
        name = environment_name(field)
        default = _MADE_AT_START.get(name) or written(field.get_default())
        value = written(getattr(settings, attribute)) if settings else ""
        extra = field.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
        why = field.description or ""
        changed = settings is not None and attribute in settings.model_fields_set and value != default
        rows.append(Row(name, form_of(field), unit, default, why, value, changed=changed))
    return rows


def markdown() -> str:
    """The text of `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Read from the environment at start, all problems told at once; no `.env` file is read. An empty",
        "variable counts as unset. `dispatch-worker config` shows the values in force.",
        "",
        "This page is made from `worker/settings/model.py` by `dispatch-worker config --format markdown`.",
    ]
    for prefix, title in (("NOMAD_", "Nomad"), ("REDIS_", "Redis"), ("WORKER_", "Worker")):
        lines += ["", f"## {title}", "", "| Variable | Form | Default | What and why |", "|---|---|---|---|"]
        lines += [
            f"| `{row.name}` | {_form_and_unit(row)} | {_code(row.default)} | {row.why} |"
            for row in reference()
            if row.name.startswith(prefix)
        ]
    return "\n".join(lines) + "\n"


def environment_name(field: FieldInfo) -> str:
    """The variable a field is read from."""
    return str(field.validation_alias)


def form_of(field: FieldInfo) -> str:
    """What a value looks like, to be read after "Give": `a whole number from 1 to 100`."""
    named = _BY_NAME.get(environment_name(field))
    if named:
        return named
    kind = _kind(field.annotation)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    least = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
    most = [bound.le for bound in field.metadata if isinstance(bound, Le)]
    form = _BY_TYPE[kind]
    form += f" from {least[0]}" if least else ""
    return form + (f" to {most[0]}" if most else "")


def written(value: Any) -> str:
    """A value as it would stand in the environment; a secret as its mask, a URL without its user."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case SecretStr():
            text = value.get_secret_value()
            return without_userinfo(text) if "://" in text else MASK
        case Listen():
            return str(value)
        case tuple():
            return ",".join(
                f"{v.name}:{v.weight}" if isinstance(v, WeightedStream) else str(v) for v in value
            )
        case _:
            return without_userinfo(str(value))


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, types.UnionType}:
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _form_and_unit(row: Row) -> str:
    return f"{row.form} ({row.unit})" if row.unit else row.form


def _code(text: str) -> str:
    return f"`{text}`" if text else "unset"
