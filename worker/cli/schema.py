"""`dispatch-worker schema`: the messages' contract and the policy file's form, as JSON Schemas and AsyncAPI.

Knows nothing of their content.
"""

import json
from enum import StrEnum
from typing import Annotated

import typer


class Document(StrEnum):
    """What can be printed."""

    REQUEST = "request"
    REPLY = "reply"
    DEAD_LETTER = "dead-letter"
    POLICY = "policy"
    ASYNCAPI = "asyncapi"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema")(schema)


def schema(
    document: Annotated[
        Document | None, typer.Argument(help="Which one; without it all JSON Schemas, by name.")
    ] = None,
) -> None:
    """Print the JSON Schema of the messages or of the policy file, or the AsyncAPI document."""
    from worker.core.asyncapi import asyncapi  # noqa: PLC0415 - heavy
    from worker.core.policy_file import policy_schema  # noqa: PLC0415
    from worker.core.schema import dead_letter_schema, reply_schema, request_schema  # noqa: PLC0415

    schemas = {
        Document.REQUEST: request_schema,
        Document.REPLY: reply_schema,
        Document.DEAD_LETTER: dead_letter_schema,
        Document.POLICY: policy_schema,
    }
    if document is Document.ASYNCAPI:
        shown = asyncapi()
    elif document is None:
        shown = {kind.value: make() for kind, make in schemas.items()}
    else:
        shown = schemas[document]()
    typer.echo(json.dumps(shown, indent=2))
