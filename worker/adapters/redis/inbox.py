"""The request streams, read as one consumer of the group.

Moves entries; what they mean and how many to read is decided by the flow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from worker.adapters.redis.connection import FAILURES, translate
from worker.core.keys import Keys
from worker.core.model import Entry, MessageKey
from worker.errors import GroupMissing, WorkerError

PENDING_PAGE = 1_000
"""Entry IDs per XPENDING: keeps one call short on a server that others wait for."""


class RedisInbox:
    """Implements `ports.Inbox`.

    Args:
        reader: a client without retries whose socket timeout exceeds `block_ms`; used for reads only.
        ops: a client for everything else.
        streams: short name to weight; a read takes from each stream by its share.
        consumer: unique per process start, so that its pending entries are this process's.
    """

    def __init__(
        self,
        reader: Any,
        ops: Any,
        keys: Keys,
        *,
        streams: Mapping[str, int],
        group: str,
        consumer: str,
        block_ms: int,
    ) -> None:
        self._reader = reader
        self._ops = ops
        self._keys = keys
        self._weights = dict(streams)
        self._names = {keys.stream(name).encode(): name for name in streams}
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms

    async def prepare(self) -> None:
        """Create the streams and the group where they do not exist.

        A new group starts at the floor, or at the very beginning: messages added before the first
        worker ever started are read too.
        """
        try:
            for name in self._weights:
                await self._create_group(name)
        except FAILURES as error:
            raise translate(error) from error

    async def read(self, limit: int) -> Sequence[Entry]:
        """See `ports.Inbox.read`. With several streams, may exceed `limit` by one entry per stream."""
        try:
            if len(self._weights) > 1:
                entries = await self._read_shares(limit)
                if entries:
                    return entries
            count = max(1, limit // len(self._weights))
            return await self._read_group(list(self._weights), count, self._block_ms)
        except FAILURES as error:
            named = translate(error)
            if isinstance(named, GroupMissing):
                await self.prepare()
            raise named from error

    async def mine(self) -> Sequence[MessageKey]:
        """See `ports.Inbox.mine`."""
        found = []
        for name in self._weights:
            start = "-"
            while True:
                page = await self._pending(name, start, PENDING_PAGE)
                found += page
                if len(page) < PENDING_PAGE:
                    break
                start = f"({page[-1].id}"
        return found

    async def fetch(self, keys: Sequence[MessageKey]) -> Sequence[Entry]:
        """See `ports.Inbox.fetch`."""
        pipeline = self._ops.pipeline(transaction=False)
        for key in keys:
            pipeline.xrange(self._keys.stream(key.stream), key.id, key.id)
        try:
            answers = await pipeline.execute()
        except FAILURES as error:
            raise translate(error) from error
        return [Entry(key, found[0][1] if found else None) for key, found in zip(keys, answers, strict=True)]

    async def _create_group(self, name: str) -> None:
        start = await self._ops.get(self._keys.floor(name)) or b"0"
        try:
            await self._ops.xgroup_create(self._keys.stream(name), self._group, id=start, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _read_shares(self, limit: int) -> list[Entry]:
        total = sum(self._weights.values())
        entries: list[Entry] = []
        for name, weight in sorted(self._weights.items(), key=lambda item: -item[1]):
            room = limit - len(entries)
            if room > 0:
                entries += await self._read_group([name], min(room, max(1, limit * weight // total)), None)
        return entries

    async def _read_group(self, names: Sequence[str], count: int, block_ms: int | None) -> list[Entry]:
        answer = await self._reader.xreadgroup(
            self._group,
            self._consumer,
            {self._keys.stream(name): ">" for name in names},
            count=count,
            block=block_ms,
        )
        return [
            Entry(MessageKey(self._names[stream], entry_id.decode()), fields)
            for stream, entries in _by_stream(answer)
            for entry_id, fields in entries
        ]

    async def _pending(self, name: str, start: str, count: int) -> list[MessageKey]:
        try:
            page = await self._ops.xpending_range(
                self._keys.stream(name), self._group, start, "+", count, self._consumer
            )
        except FAILURES as error:
            named: WorkerError = translate(error)
            if isinstance(named, GroupMissing):
                return []
            raise named from error
        return [MessageKey(name, item["message_id"].decode()) for item in page]


def _by_stream(answer: Any) -> Sequence[tuple[bytes, Any]]:
    """XREADGROUP's answer as (stream, entries): RESP3 gives a map with one more list around, RESP2 pairs."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [(stream, entries[0] if entries else []) for stream, entries in answer.items()]
    return [(stream, entries) for stream, entries in answer]
