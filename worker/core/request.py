"""Request entries: flat fields of bytes in a stream, to and from a checked `Request`.

Decides what a well-formed request is. Whether a job may be dispatched is for the policy and Nomad to say.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from worker.core.instants import format_rfc3339, parse_rfc3339
from worker.core.keys import Keys
from worker.core.model import PAYLOAD_LIMIT_BYTES, REQUEST_VERSION, Request, Routing
from worker.errors import (
    FieldInvalid,
    FieldMissing,
    MetaInvalid,
    MetaTooLarge,
    PayloadTooLarge,
    PlaceNotConfigured,
    ReplyToInvalid,
    RequestRejected,
    VersionUnknown,
)

TEXT_LIMIT_BYTES = 2_048
"""For every text field: enough for any name or trace context, too little to hurt."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

MAX_PRIORITY = 32_767
"""The most a server's `job_max_priority` can be set to; the bound in force is for Nomad to say."""

_TRUE = frozenset({"1", "true", "yes"})
_FALSE = frozenset({"", "0", "false", "no"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What this worker accepts in a request.

    `namespaces` and `regions` list what is configured, its defaults first; a request's own choice
    must be among them, so that no message opens a connection at a stranger's wish.
    """

    keys: Keys
    namespaces: tuple[str, ...] = ("default",)
    regions: tuple[str, ...] = ("",)
    max_meta_bytes: int = 16_384


def decode_request(fields: Mapping[bytes, bytes], limits: Limits) -> Request:
    """Check an entry's fields and decode them. Unknown fields are ignored.

    Raises:
        RequestRejected: (or a kind of it) naming the field and its fault, never its content.
    """
    version = _text(fields, b"v") or str(REQUEST_VERSION)
    if version != str(REQUEST_VERSION):
        message = f"field v: this worker reads version {REQUEST_VERSION} only"
        raise VersionUnknown(message)
    payload = fields.get(b"payload", b"")
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        message = f"field payload: {len(payload)} bytes; Nomad accepts at most {PAYLOAD_LIMIT_BYTES}"
        raise PayloadTooLarge(message)
    reply_to = limits.keys.reply_name(_text(fields, b"reply_to"))
    if reply_to is None:
        message = f"field reply_to: must be a name of letters, digits, _ . - below {limits.keys.replies}:"
        raise ReplyToInvalid(message)
    return Request(
        job=_job(fields),
        payload=payload,
        meta=_meta(fields, limits.max_meta_bytes),
        namespace=_configured(fields, b"namespace", limits.namespaces),
        region=_configured(fields, b"region", limits.regions),
        priority=_optional(fields, b"priority", _priority),
        id_prefix=_text(fields, b"id_prefix"),
        detach=_flag(fields, b"detach"),
        reply_to=reply_to,
        correlation_id=_text(fields, b"correlation_id"),
        tenant=_text(fields, b"tenant"),
        deadline_ms=_optional(fields, b"deadline", parse_rfc3339),
        not_before_ms=_optional(fields, b"not_before", parse_rfc3339),
        timeout_seconds=_optional(fields, b"timeout_seconds", _seconds),
        idempotency_key=_text(fields, b"idempotency_key"),
        traceparent=_text(fields, b"traceparent"),
        replay_of=_text(fields, b"replay_of"),
    )


def routing_of(request: Request, limits: Limits) -> Routing:
    """What replies to this request need, with the worker's defaults filled in."""
    return Routing(
        job=request.job,
        namespace=request.namespace or limits.namespaces[0],
        region=request.region or limits.regions[0],
        reply_to=request.reply_to,
        correlation_id=request.correlation_id,
        tenant=request.tenant,
        detach=request.detach,
        timeout_seconds=request.timeout_seconds,
        traceparent=request.traceparent,
        idempotency_key=request.idempotency_key,
    )


def salvage_routing(fields: Mapping[bytes, bytes], limits: Limits) -> Routing:
    """As much of the routing as a faulty entry still tells, so that its error reply finds a reader."""

    def lenient(name: bytes) -> str:
        try:
            return _text(fields, name)
        except RequestRejected:
            return ""

    return Routing(
        job=lenient(b"job"),
        namespace=lenient(b"namespace") or limits.namespaces[0],
        region=lenient(b"region") or limits.regions[0],
        reply_to=limits.keys.reply_name(lenient(b"reply_to")) or "",
        correlation_id=lenient(b"correlation_id"),
        tenant=lenient(b"tenant"),
        idempotency_key=lenient(b"idempotency_key"),
    )


def encode_request(request: Request) -> dict[bytes, bytes]:
    """The entry's fields for XADD; fields at their default are left out, except `v` and `job`."""
    fields: dict[str, str | bytes] = {"v": str(REQUEST_VERSION), "job": request.job}
    optional: dict[str, str | bytes | None] = {
        "payload": request.payload,
        "meta": msgspec.json.encode(dict(request.meta)) if request.meta else None,
        "namespace": request.namespace,
        "region": request.region,
        "priority": None if request.priority is None else str(request.priority),
        "id_prefix": request.id_prefix,
        "detach": "1" if request.detach else None,
        "reply_to": request.reply_to,
        "correlation_id": request.correlation_id,
        "tenant": request.tenant,
        "deadline": _instant(request.deadline_ms),
        "not_before": _instant(request.not_before_ms),
        "timeout_seconds": None if request.timeout_seconds is None else f"{request.timeout_seconds:g}",
        "idempotency_key": request.idempotency_key,
        "traceparent": request.traceparent,
        "replay_of": request.replay_of,
    }
    fields |= {name: value for name, value in optional.items() if value}
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in fields.items()
    }


def _instant(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else format_rfc3339(unix_ms)


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    raw = fields.get(name)
    if not raw:
        return ""
    if len(raw) > TEXT_LIMIT_BYTES:
        message = f"field {name.decode()}: {len(raw)} bytes; at most {TEXT_LIMIT_BYTES} are accepted"
        raise FieldInvalid(message)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        message = f"field {name.decode()}: not UTF-8"
        raise FieldInvalid(message) from error
    if _CONTROL.search(text):
        message = f"field {name.decode()}: holds control characters"
        raise FieldInvalid(message)
    return text


def _job(fields: Mapping[bytes, bytes]) -> str:
    job = _text(fields, b"job")
    if not job:
        message = "field job: missing; it names the parameterized job to dispatch"
        raise FieldMissing(message)
    if any(character.isspace() for character in job):
        message = "field job: holds white space, which no Nomad job ID does"
        raise FieldInvalid(message)
    return job


def _meta(fields: Mapping[bytes, bytes], max_bytes: int) -> dict[str, str]:
    raw = fields.get(b"meta", b"")
    if len(raw) > max_bytes:
        message = f"field meta: {len(raw)} bytes; at most {max_bytes} are accepted"
        raise MetaTooLarge(message)
    if not raw:
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, str])
    # RecursionError: JSON nested thousands deep; UnicodeDecodeError: lone surrogates and bad UTF-8.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "field meta: must be one JSON object whose values are all strings"
        raise MetaInvalid(message) from error


def _configured(fields: Mapping[bytes, bytes], name: bytes, configured: tuple[str, ...]) -> str | None:
    value = _text(fields, name)
    if value and value not in configured:
        field = name.decode()
        served = ", ".join(filter(None, configured)) or f"the agent's own: leave the field {field} out"
        message = f"field {field}: this worker serves {served}; WORKER_{field.upper()}S adds to that"
        raise PlaceNotConfigured(message)
    return value or None


def _optional(fields: Mapping[bytes, bytes], name: bytes, parse: Callable[[str], Any]) -> Any:
    text = _text(fields, name)
    if not text:
        return None
    try:
        return parse(text)
    except (ValueError, OverflowError) as error:
        message = f"field {name.decode()}: {_fault(name)}"
        raise FieldInvalid(message) from error


def _fault(name: bytes) -> str:
    return {
        b"priority": f"must be a whole number from 1 to {MAX_PRIORITY}",
        b"timeout_seconds": "must be a positive number of seconds",
    }.get(name, "must be an RFC 3339 time with an offset, such as 2026-11-24T01:48:02Z")


def _priority(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_PRIORITY:
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(text)
    return seconds


def _flag(fields: Mapping[bytes, bytes], name: bytes) -> bool:
    text = _text(fields, name).lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    message = f"field {name.decode()}: must be 1 or 0"
    raise FieldInvalid(message)
