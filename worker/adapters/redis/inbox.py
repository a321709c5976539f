"""The request streams, read as one consumer of the group.

Moves entries; what they mean and how many to read is decided by the flow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from worker.adapters.redis.connection import FAILURES, translate
from worker.core.instants import entry_time_ms
from worker.core.keys import Keys
from worker.core.model import Entry, MessageKey
from worker.core.turns import Shares, Strict
from worker.errors import GroupMissing, WorkerError

AT_ONCE = 16
"""Entries of one stream before the next is considered, in strict order."""
PENDING_PAGE = 1_000
"""Entry IDs per XPENDING: keeps one call short on a server that others wait for."""


class RedisInbox:
    """Implements `ports.Inbox`.

    Args:
        reader: a client without retries whose socket timeout exceeds `block_ms`; used for reads only.
        ops: a client for everything else.
        streams: short name to weight; a read takes from each stream by its share,
        ageing_seconds: or in the strict order of the weights, with this ageing; None: by shares.
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
        ageing_seconds: float | None = None,
    ) -> None:
        self._reader = reader
        self._ops = ops
        self._keys = keys
        self._weights = dict(streams)
        self._shares = Shares(self._weights)
        self._strict = None if ageing_seconds is None else Strict(self._weights, ageing_seconds)
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

    async def read(self, limit: int, within_seconds: float | None = None) -> Sequence[Entry]:
        """See `ports.Inbox.read`. With several streams, may exceed `limit` by one entry per stream."""
        try:
            if len(self._weights) > 1:
                entries = await (self._read_strict(limit) if self._strict else self._read_shares(limit))
                if entries:
                    return entries
            count = max(1, limit // len(self._weights))
            # 0 would block for ever.
            within_ms = self._block_ms if within_seconds is None else max(1, int(within_seconds * 1000))
            return await self._read_group(list(self._weights), count, min(self._block_ms, within_ms))
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
        total, left = sum(self._weights.values()), set(self._weights)
        entries: list[Entry] = []
        while left and (room := limit - len(entries)) > 0:
            name = self._shares.next(left)
            count = min(room, max(1, limit * self._weights[name] // total))
            read = await self._read_group([name], count, None)
            self._shares = self._shares.charged(name, len(read))
            entries += read
            if len(read) < count:
                left.discard(name)
        return entries

    async def _read_strict(self, limit: int) -> list[Entry]:
        heads = await self._heads() if self._strict else {}
        entries: list[Entry] = []
        while self._strict and heads and (room := limit - len(entries)) > 0:
            name = self._strict.next(heads)
            count = min(room, AT_ONCE)
            read = await self._read_group([name], count, None)
            entries += read
            if len(read) < count:
                del heads[name]
            else:
                # What follows is no older; its own time is not worth a question.
                heads[name] = entry_time_ms(read[-1].key.id)
        return entries

    async def _heads(self) -> dict[str, int]:
        """When the oldest unread entry of each stream that has one came, Unix milliseconds."""
        pipeline = self._ops.pipeline(transaction=False)
        for name in self._weights:
            pipeline.xinfo_groups(self._keys.stream(name))
        groups = await pipeline.execute()
        pipeline = self._ops.pipeline(transaction=False)
        for name, found in zip(self._weights, groups, strict=True):
            last = [group["last-delivered-id"] for group in found if group["name"] == self._group.encode()]
            pipeline.xrange(self._keys.stream(name), b"(" + (last[0] if last else b"0-0"), "+", count=1)
        unread = await pipeline.execute()
        return {
            name: entry_time_ms(found[0][0].decode())
            for name, found in zip(self._weights, unread, strict=True)
            if found
        }

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
