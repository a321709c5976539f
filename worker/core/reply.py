"""Reply entries: what the worker publishes about a message, to and from flat fields of bytes.

Decides the form of replies; when one is published is decided by `lifecycle` and the ledger's scripts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from worker.core.instants import format_rfc3339
from worker.core.model import Outcome, Record, Verdict

REPLY_VERSION = 1
_VERSION = str(REPLY_VERSION)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply entry. Consumers dedupe on (`stream`, `id`, `seq`), finals on (`stream`, `id`)."""

    type: str
    """`accepted`, `dispatched`, `blocked`, `placed`, `running`, `retrying` or `result`."""
    id: str
    stream: str
    seq: int
    final: bool
    job: str = ""
    namespace: str = ""
    region: str = ""
    dispatched_job_id: str = ""
    eval_id: str = ""
    correlation_id: str = ""
    at: str = ""
    """RFC 3339, UTC, milliseconds."""
    worker: str = ""
    attempt: int = 0
    verdict: Verdict | None = None
    exit_code: int | None = None
    error_code: str = ""
    error_message: str = ""
    ui_url: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    entry_id: str = ""
    """The reply's own entry ID in the reply stream; empty when it was not read from one."""


def reply_fields(
    record: Record,
    kind: str,
    *,
    at_ms: int,
    worker: str,
    data: Mapping[str, Any] | None = None,
    ui_url: str = "",
) -> list[str]:
    """Fields and values for XADD, flat and in order, without `seq`: the script that adds it knows it.

    Empty fields are left out. A record with an outcome makes a final reply.
    """
    outcome = record.outcome if kind == "result" else None
    key, routing = record.key, record.routing
    flat: list[str] = ["v", _VERSION, "type", kind, "id", key.id, "stream", key.stream]
    flat += ("final", "1" if outcome else "0")
    for name, value in (
        ("job", routing.job),
        ("namespace", routing.namespace),
        ("region", routing.region),
        ("dispatched_job_id", record.job_id),
        ("eval_id", record.eval_id),
        ("correlation_id", routing.correlation_id),
        ("at", format_rfc3339(at_ms)),
        ("worker", worker),
        ("attempt", str(record.attempt)),
        ("ui_url", ui_url),
        *(_outcome_fields(outcome) if outcome else ()),
    ):
        if value:
            flat += (name, value)
    data = outcome.evidence if outcome else data
    if data:
        flat += ("data", msgspec.json.encode(data).decode())
    return flat


def _outcome_fields(outcome: Outcome) -> Iterable[tuple[str, str]]:
    return (
        ("verdict", outcome.verdict.value),
        ("exit_code", "" if outcome.exit_code is None else str(outcome.exit_code)),
        ("error_code", outcome.error_code),
        ("error_message", outcome.error_message),
    )


def decode_reply(fields: Mapping[bytes, bytes], entry_id: str = "") -> Reply:
    """A reply entry as a consumer reads it. Unknown fields are ignored, so new ones may come.

    Raises:
        ValueError: not a reply entry of a version this code reads.
    """
    text = {name.decode(): value.decode() for name, value in fields.items() if name != b"data"}
    if text.get("v") != str(REPLY_VERSION):
        message = f"not a reply entry of version {REPLY_VERSION}"
        raise ValueError(message)
    data: dict[str, Any] = msgspec.json.decode(fields[b"data"]) if b"data" in fields else {}
    return Reply(
        type=text["type"],
        id=text["id"],
        stream=text["stream"],
        seq=int(text.get("seq", "0")),
        final=text.get("final") == "1",
        **{name: text.get(name, "") for name in _PLAIN},
        attempt=int(text.get("attempt", "0")),
        verdict=Verdict(text["verdict"]) if "verdict" in text else None,
        exit_code=int(text["exit_code"]) if "exit_code" in text else None,
        data=data,
        entry_id=entry_id,
    )


_PLAIN = (
    "job",
    "namespace",
    "region",
    "dispatched_job_id",
    "eval_id",
    "correlation_id",
    "at",
    "worker",
    "error_code",
    "error_message",
    "ui_url",
)
