"""`dispatch-worker config`: every setting with its value, default and reason.

Knows nothing of single settings; secrets are masked before they come here.
"""

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from worker.settings import Row


class Form(StrEnum):
    """How the settings are shown."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(config)


def config(
    form: Annotated[
        Form, typer.Option("--format", help="markdown: the reference, without values.")
    ] = Form.TABLE,
) -> None:
    """Show all settings: value in force, default, reason. Fails, naming every fault, when one is wrong."""
    from worker.settings import load, markdown, reference  # noqa: PLC0415 - heavy

    if form is Form.MARKDOWN:
        typer.echo(markdown(), nl=False)
        return
    rows = reference(load())
    if form is Form.JSON:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        typer.echo("\n\n".join(_shown(row) for row in rows))


def _shown(row: "Row") -> str:
    """One setting as lines that can stand in an environment file."""
    default = f"default {row.default}" if row.default else "default: unset"
    unit = f" {row.unit}" if row.unit else ""
    return f"# {row.why}\n# {row.form}{unit}; {default}\n{'' if row.changed else '#'}{row.name}={row.value}"
