"""What lately happened, read when somebody looks: results, dead letters, and the whole story of one message.

Decides nothing and changes nothing. Every read is bounded: a reply may carry a lot of evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.adapters.redis.connection import FAILURES, translate
from worker.adapters.redis.records import decode_record
from worker.core.keys import Keys
from worker.core.model import MessageKey, Record
from worker.core.reply import Reply, decode_reply

REPLIES_READ = 100
DEAD_LETTERS_READ = 100
"""Each may hold a payload of 16 KiB and as much meta."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter without what it carries."""

    id: str
    """Its entry ID in the dead-letter stream."""
    key: MessageKey
    verdict: str
    code: str
    message: str
    job: str
    at: str
    """RFC 3339."""


@dataclass(frozen=True, slots=True)
class Story:
    """All that Redis tells of one message."""

    key: MessageKey
    waiting: bool
    """Whether its entry is still in the request stream."""
    record: Record | None = None
    """None: no worker has admitted it, or the ledger has forgotten it."""
    owner: str = ""
    finished_at_ms: int = 0
    final: Reply | None = None


class RedisLookback:
    """Reads on the pool for operations.

    All methods raise RedisUnavailable and RedisDenied (`XREVRANGE` may be withheld: only this page needs it).
    """

    def __init__(self, ops: Any, keys: Keys) -> None:
        self._ops = ops
        self._keys = keys

    async def results(self) -> list[Reply]:
        """Final replies among the last entries of the shared reply stream, the newest first."""
        try:
            entries = await self._ops.xrevrange(self._keys.replies, count=REPLIES_READ)
        except FAILURES as error:
            raise translate(error) from error
        replies = [_reply(entry_id, fields) for entry_id, fields in entries]
        return [reply for reply in replies if reply is not None and reply.final]

    async def dead_letters(self) -> list[DeadLetter]:
        """The last dead letters, the newest first."""
        try:
            entries = await self._ops.xrevrange(self._keys.dead, count=DEAD_LETTERS_READ)
        except FAILURES as error:
            raise translate(error) from error
        return [_dead_letter(entry_id, fields) for entry_id, fields in entries]

    async def story(self, key: MessageKey) -> Story | None:
        """One message; None when Redis knows nothing of it.

        Raises:
            RecordUnreadable: written by a newer version.
        """
        try:
            waiting = bool(await self._ops.xrange(self._keys.stream(key.stream), key.id, key.id))
            stored = await self._ops.hgetall(self._keys.message(key))
            if not stored:
                return Story(key, waiting) if waiting else None
            record = decode_record(key, stored)
            final = None
            if record.reply_id:
                stream = self._keys.reply_stream(record.routing.reply_to)
                found = await self._ops.xrange(stream, record.reply_id, record.reply_id)
                final = _reply(*found[0]) if found else None
        except FAILURES as error:
            raise translate(error) from error
        finished_at_ms = int(stored.get(b"finished_at", b"0"))
        return Story(key, waiting, record, stored.get(b"owner", b"").decode(), finished_at_ms, final)


def _reply(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Reply | None:
    try:
        return decode_reply(fields, entry_id.decode())
    except (ValueError, KeyError):
        # Of a newer version, or not written by a worker.
        return None


def _dead_letter(entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return fields.get(b"dead_" + name, b"").decode(errors="replace")

    key = MessageKey(text(b"stream"), text(b"id"))
    return DeadLetter(
        entry_id.decode(),
        key,
        text(b"verdict"),
        text(b"code"),
        text(b"message"),
        text(b"job"),
        at=text(b"at"),
    )
