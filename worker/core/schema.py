"""The messages' JSON Schemas: requests, replies and dead letters, field by field as they stand in a stream.

Describes only: requests are checked by `request`, replies are written by `reply`; tests hold them together.
"""

import inspect
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from worker.core.model import PAYLOAD_LIMIT_BYTES, Verdict
from worker.core.request import TEXT_LIMIT_BYTES

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_RFC3339 = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$"


def _text(description: str, *, pattern: str | None = None, **extra: Any) -> Meta:
    return Meta(
        description=description, pattern=pattern, max_length=TEXT_LIMIT_BYTES, extra_json_schema=extra
    )


def _json(description: str, content: dict[str, Any]) -> Meta:
    embedded = {"contentMediaType": "application/json", "contentSchema": content}
    return Meta(description=description, extra_json_schema=embedded)


_payload = Meta(
    description=f"At most {PAYLOAD_LIMIT_BYTES} raw bytes. In the stream as they are; base64 in JSON only.",
    extra_json_schema={"contentEncoding": "base64"},
)


class RequestEntry(msgspec.Struct, kw_only=True):
    """A dispatch request, version 1. Every field is text but `payload`; an empty one counts as absent.

    Unknown fields are kept and ignored.
    """

    job: Annotated[str, _text("ID of the parameterized job.", pattern=r"^\S+$")]
    v: Annotated[Literal["1"], Meta(description="Message version.")] = "1"
    payload: Annotated[str, _payload] = ""
    meta: Annotated[
        str,
        _json("One JSON object of strings.", {"type": "object", "additionalProperties": {"type": "string"}}),
    ] = ""
    namespace: Annotated[str, _text("One of those the worker serves. Default: its first.")] = ""
    region: Annotated[str, _text("One of those the worker serves. Default: its first.")] = ""
    priority: Annotated[str, _text("Priority of the dispatched job.", pattern=r"^0*[1-9]\d{0,4}$")] = ""
    id_prefix: Annotated[str, _text("Put into the dispatched job's ID.")] = ""
    detach: Annotated[
        str,
        _text("1: the final reply comes when the job is dispatched.", pattern="^([01]|true|false|yes|no)$"),
    ] = ""
    reply_to: Annotated[str, _text("Name of a reply stream below the worker's. Default: the shared one.")] = (
        ""
    )
    correlation_id: Annotated[str, _text("Returned in every reply.")] = ""
    tenant: Annotated[str, _text("Whose request it is; caps and fairness go by it.")] = ""
    deadline: Annotated[
        str, _text("Latest start; later it is `expired`.", pattern=_RFC3339, format="date-time")
    ] = ""
    not_before: Annotated[str, _text("Earliest start.", pattern=_RFC3339, format="date-time")] = ""
    timeout_seconds: Annotated[
        str, _text("Run limit; the worker then stops the job: `timed_out`.", examples=["3600"])
    ] = ""
    idempotency_key: Annotated[str, _text("The producer's key; the client dedupes by it.")] = ""
    traceparent: Annotated[str, _text("W3C trace context.")] = ""
    replay_of: Annotated[str, _text("`<stream>:<id>` of the dead letter this request repeats.")] = ""


class ReplyEntry(msgspec.Struct, kw_only=True):
    """A reply, version 1. Every field is text; what is empty is left out.

    Dedupe on (`stream`, `id`, `seq`), finals on (`stream`, `id`). Ignore unknown fields and types.
    """

    v: Annotated[Literal["1"], Meta(description="Message version.")]
    type: Annotated[
        Literal["accepted", "dispatched", "blocked", "placed", "running", "retrying", "result"],
        Meta(description="The step told. `blocked`: no node can take the job now."),
    ]
    id: Annotated[str, Meta(description="Entry ID of the request.", pattern=r"^\d+-\d+$")]
    stream: Annotated[str, Meta(description="Short name of the request's stream.")]
    seq: Annotated[
        str, Meta(description="Number of this reply among those of its request.", pattern=r"^\d+$")
    ]
    final: Annotated[Literal["0", "1"], Meta(description="1 on exactly one reply of each request.")]
    at: Annotated[str, Meta(description="When it was written, UTC.", pattern=_RFC3339)]
    worker: Annotated[str, Meta(description="The worker that wrote it.")]
    attempt: Annotated[
        str, Meta(description="Number of the run this is about; 0 before the first.", pattern=r"^\d+$")
    ]
    job: Annotated[str, Meta(description="ID of the parameterized job.")] = ""
    namespace: Annotated[str, Meta(description="Where the job lives.")] = ""
    region: Annotated[str, Meta(description="Where the job lives.")] = ""
    dispatched_job_id: Annotated[str, Meta(description="ID of the dispatched job.")] = ""
    eval_id: Annotated[str, Meta(description="Evaluation made by the dispatch.")] = ""
    correlation_id: Annotated[str, Meta(description="As in the request.")] = ""
    verdict: Annotated[Verdict, Meta(description="How it ended; on the final reply only.")] | UnsetType = (
        UNSET
    )
    exit_code: Annotated[str, Meta(description="Of the deciding task.", pattern=r"^-?\d+$")] = ""
    error_code: Annotated[str, Meta(description="Stable code of the error, such as nomad.job_unknown.")] = ""
    error_message: Annotated[str, Meta(description="For people; may change.")] = ""
    ui_url: Annotated[str, Meta(description="The dispatched job in Nomad's web interface.")] = ""
    data: Annotated[str, _json("Evidence: allocations, tasks, placement.", {"type": "object"})] = ""


class DeadLetterEntry(msgspec.Struct, kw_only=True):
    """A dead letter: these fields, and after them the request's own as they were.

    Every field is text; what is empty is left out.
    """

    dead_stream: Annotated[str, Meta(description="Short name of the request's stream.")]
    dead_id: Annotated[str, Meta(description="Entry ID of the request.", pattern=r"^\d+-\d+$")]
    dead_verdict: Annotated[Verdict, Meta(description="How it ended.")]
    dead_at: Annotated[str, Meta(description="When it was written, UTC.", pattern=_RFC3339)]
    dead_worker: Annotated[str, Meta(description="The worker that wrote it.")]
    dead_attempt: Annotated[str, Meta(description="How often a dispatch was begun.", pattern=r"^\d+$")]
    dead_takeovers: Annotated[str, Meta(description="How many workers died holding it.", pattern=r"^\d+$")]
    dead_code: Annotated[str, Meta(description="Stable code of the error.")] = ""
    dead_message: Annotated[str, Meta(description="For people; may change.")] = ""
    dead_job: Annotated[str, Meta(description="ID of the parameterized job.")] = ""
    dead_tenant: Annotated[str, Meta(description="As in the request.")] = ""
    dead_dispatched_job_id: Annotated[str, Meta(description="ID of the dispatched job.")] = ""


def request_schema() -> dict[str, Any]:
    """JSON Schema of a request entry."""
    return _schema(RequestEntry, "Dispatch request")


def reply_schema() -> dict[str, Any]:
    """JSON Schema of a reply entry."""
    return _schema(ReplyEntry, "Reply")


def dead_letter_schema() -> dict[str, Any]:
    """JSON Schema of a dead letter."""
    return _schema(DeadLetterEntry, "Dead letter")


def _schema(kind: type[msgspec.Struct], title: str) -> dict[str, Any]:
    (top,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    definition = components.pop(top["$ref"].rpartition("/")[2])
    definition["description"] = inspect.cleandoc(kind.__doc__ or "")
    schema: dict[str, Any] = {"$schema": DIALECT, **definition, "title": title}
    return schema | ({"$defs": components} if components else {})
