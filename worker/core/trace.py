"""W3C trace context, as far as the worker needs it: which trace a message belongs to, and its span IDs.

Knows nothing of spans' contents or of where they are sent. IDs are made from the message alone, so that
every worker that ever holds a message gives its spans the same ones.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b

from worker.core.model import MessageKey

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Parent:
    """The span of the producer under which a message's spans stand."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(text: str) -> Parent | None:
    """The parent that a `traceparent` names; None when it is none, or names the all-zero trace or span.

    Source: W3C Trace Context, section 3.2. A version not known here is read as far as version 00 goes.
    """
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (text.startswith("00") and len(text) > found.end(3)):
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return Parent(trace_id, span_id, bool(flags & _SAMPLED)) if trace_id and span_id else None


def trace_id_of(traceparent: str) -> str:
    """The trace ID in a `traceparent`, 32 hex digits; empty when there is none."""
    parent = parse_traceparent(traceparent)
    return f"{parent.trace_id:032x}" if parent else ""


def own_trace_id(prefix: str, key: MessageKey) -> int:
    """The trace of a message whose producer gave none; the prefix tells queues apart."""
    return _number(16, prefix, str(key))


def span_id(trace_id: int, key: MessageKey, name: str) -> int:
    """The ID of one of a message's spans."""
    return _number(8, f"{trace_id:032x}", str(key), name)


def traceparent(trace_id: int, parent_span_id: int, *, sampled: bool) -> str:
    """The text of version 00."""
    return f"00-{trace_id:032x}-{parent_span_id:016x}-{_SAMPLED if sampled else 0:02x}"


def _number(size: int, *parts: str) -> int:
    # 1 instead of the one ID that is not allowed.
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=size).digest()) or 1
