"""Replies as a producer reads them: which belong to a message, which are repeats, which is the last.

Values in, values out; the clients move the bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.core.instants import entry_time_ms, format_rfc3339
from worker.core.model import LEDGER_VERSION, MessageKey, Phase, Verdict
from worker.core.reply import Reply, decode_reply
from worker.errors import RecordUnreadable

StreamEntry = tuple[str, Mapping[bytes, bytes]]
"""An entry's ID and fields."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request in its stream, and where to read what becomes of it."""

    stream: str
    """Short name, as in `WORKER_STREAMS`."""
    id: str
    """The entry ID: the message ID in replies, and Nomad's idempotency token."""
    reply_stream: str
    """Redis key."""
    replies_after: str
    """Every reply to this message has a greater entry ID in the reply stream."""
    repeated: bool = False
    """The idempotency key had been used: this is the message of its first use."""

    @property
    def key(self) -> MessageKey:
        """The message's identity."""
        return MessageKey(self.stream, self.id)


def just_before(message_id: str) -> str:
    """A reply-stream position before every reply to a message that was sent at an unknown earlier time.

    Sound as long as Redis's clock was not set back in between; the ledger covers that case.
    """
    return f"{max(entry_time_ms(message_id) - 1, 0)}-0"


def order(entry_id: str) -> tuple[int, int]:
    """Entry IDs as numbers, for comparing."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or "0")


def stream_entries(answer: Any) -> list[StreamEntry]:
    """Entries of XREAD's answer for one stream: a map (RESP3), a list (RESP2), or nothing."""
    if not answer:
        return []
    entries = next(iter(answer.values())) if isinstance(answer, Mapping) else answer[0][1]
    # As a map, redis-py wraps the entries in one more list.
    if isinstance(entries, list) and entries and isinstance(entries[0], list):
        entries = entries[0]
    return range_entries(entries)


def range_entries(answer: Sequence[Any]) -> list[StreamEntry]:
    """Entries of XRANGE's answer."""
    return [(entry_id.decode(), fields or {}) for entry_id, fields in answer]


class Thread:
    """The replies to one message, each once."""

    def __init__(self, key: MessageKey) -> None:
        self.key = key
        self._names = (key.stream.encode(), key.id.encode())
        self._seen: set[int] = set()

    def take(self, entry: StreamEntry) -> Reply | None:
        """The reply in an entry; None when it is another message's, a repeat, or not readable."""
        entry_id, fields = entry
        if (fields.get(b"stream"), fields.get(b"id")) != self._names:
            return None
        try:
            reply = decode_reply(fields, entry_id)
        except (ValueError, KeyError):
            # Somebody else's entry, or one of a newer version: the ledger has the result.
            return None
        if reply.seq in self._seen:
            return None
        self._seen.add(reply.seq)
        return reply


def reply_in_ledger(key: MessageKey, stored: Mapping[bytes, bytes]) -> Reply | None:
    """The final reply as the ledger remembers it, without `data`; None while the message is open.

    Args:
        key: the message.
        stored: HGETALL of its ledger hash; empty when there is none.

    Raises:
        RecordUnreadable: written by a newer version.
    """
    try:
        return _reply_in_ledger(key, stored)
    except ValueError as error:
        message = f"the ledger of {key} holds what this version does not read: {error}"
        raise RecordUnreadable(message) from error


def _reply_in_ledger(key: MessageKey, stored: Mapping[bytes, bytes]) -> Reply | None:
    text = {name.decode(): value.decode(errors="replace") for name, value in stored.items()}
    if text.get("state") != Phase.SETTLED.value:
        return None
    if text.get("v") != str(LEDGER_VERSION):
        message = f"the ledger of {key} has version {text.get('v', '')!r}, not {LEDGER_VERSION}"
        raise RecordUnreadable(message)
    return Reply(
        type="result",
        id=key.id,
        stream=key.stream,
        seq=int(text.get("seq", "0")),
        final=True,
        job=text.get("job", ""),
        namespace=text.get("namespace", ""),
        region=text.get("region", ""),
        dispatched_job_id=text.get("child", ""),
        eval_id=text.get("eval_id", ""),
        correlation_id=text.get("correlation_id", ""),
        at=format_rfc3339(int(text["finished_at"])) if "finished_at" in text else "",
        attempt=int(text.get("attempt", "0")),
        verdict=Verdict(text["verdict"]) if "verdict" in text else None,
        exit_code=int(text["exit_code"]) if "exit_code" in text else None,
        error_code=text.get("error_code", ""),
        error_message=text.get("error_message", ""),
        entry_id=text.get("reply_id", ""),
    )
