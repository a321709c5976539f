"""`dispatch-worker schema`: the messages' JSON Schemas.

Knows nothing of their content.
"""

import json
from enum import StrEnum
from typing import Annotated

import typer


class Message(StrEnum):
    """The kinds of messages."""

    REQUEST = "request"
    REPLY = "reply"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema")(schema)


def schema(
    message: Annotated[Message | None, typer.Argument(help="Which one; without it both, by name.")] = None,
) -> None:
    """Print the JSON Schema of the messages."""
    from worker.core.schema import reply_schema, request_schema  # noqa: PLC0415 - heavy

    schemas = {Message.REQUEST: request_schema, Message.REPLY: reply_schema}
    shown = {kind.value: make() for kind, make in schemas.items()} if message is None else schemas[message]()
    typer.echo(json.dumps(shown, indent=2))
