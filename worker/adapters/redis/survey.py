"""What replicas share, read when somebody asks: backlog, leases, dead letters.

Decides nothing. What Redis cannot tell is None, never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from worker.adapters.redis.connection import FAILURES, server_time_ms, translate
from worker.core.backlog import Backlog, StreamBacklog
from worker.core.instants import entry_time_ms
from worker.core.keys import SCOPES, Keys

LAG_COUNT_LIMIT = 10_000
"""Entries counted by hand where Redis does not know the lag; more than this stays unknown."""


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """One replica as Redis knows it."""

    name: str
    lease_remaining_seconds: float
    about: dict[str, str]


class RedisSurvey:
    """Reads on the pool for operations; each call is a handful of commands."""

    def __init__(self, ops: Any, keys: Keys, *, streams: Sequence[str], group: str) -> None:
        self._ops = ops
        self._keys = keys
        self._streams = tuple(streams)
        self._group = group

    async def backlog(self) -> Backlog:
        """Everything that replicas share, as it is now.

        Raises:
            RedisUnavailable, RedisDenied.
        """
        try:
            now_ms = await self._now_ms()
            return Backlog(
                streams={name: await self._stream(name, now_ms) for name in self._streams},
                dead_letters=await self._ops.xlen(self._keys.dead),
                dead_letters_expire=await self._dead_letters_expire(),
                workers=await self._ops.zcount(self._keys.workers, f"({now_ms}", "+inf"),
                slots_taken={scope: await self._ops.zcard(self._keys.cap(scope)) for scope in SCOPES},
            )
        except FAILURES as error:
            raise translate(error) from error

    async def workers(self) -> list[WorkerSeen]:
        """All replicas with a lease, whether over or not.

        Raises:
            RedisUnavailable, RedisDenied.
        """
        try:
            now_ms = await self._now_ms()
            found = await self._ops.zrange(self._keys.workers, 0, -1, withscores=True)
            return [
                WorkerSeen(name.decode(), (deadline - now_ms) / 1000, await self._about(name.decode()))
                for name, deadline in found
            ]
        except FAILURES as error:
            raise translate(error) from error

    async def _dead_letters_expire(self) -> bool:
        notice = await self._ops.get(self._keys.dead_notice)
        if notice is None:
            return False
        upto = notice.partition(b":")[0]
        # Somebody may have seen to them since.
        return bool(await self._ops.xrange(self._keys.dead, "-", upto, count=1))

    async def _now_ms(self) -> int:
        return await server_time_ms(self._ops, self._keys.workers)

    async def _about(self, name: str) -> dict[str, str]:
        stored = await self._ops.hgetall(self._keys.worker(name))
        return {field.decode(): value.decode() for field, value in stored.items()}

    async def _stream(self, name: str, now_ms: int) -> StreamBacklog:
        stream = self._keys.stream(name)
        try:
            groups = await self._ops.xinfo_groups(stream)
        except ResponseError as error:
            if "no such key" in str(error):
                return StreamBacklog(0, 0, 0.0, 0, 0, 0.0)
            raise
        group = next((found for found in groups if found["name"] == self._group.encode()), None)
        if group is None:
            return StreamBacklog()
        oldest_seconds = 0.0
        if group["pending"]:
            summary = await self._ops.xpending(stream, self._group)
            oldest_seconds = max(0.0, (now_ms - entry_time_ms(summary["min"].decode())) / 1000)
        lag = group.get("lag")
        if lag is None:
            lag = await self._count(stream, group["last-delivered-id"])
        return StreamBacklog(
            lag=lag,
            pending=group["pending"],
            oldest_pending_seconds=oldest_seconds,
            queued=await self._ops.zcard(self._keys.queue(name)),
            delayed=await self._ops.zcard(self._keys.delayed(name)),
            oldest_queued_seconds=await self._oldest_queued_seconds(name, now_ms),
        )

    async def _oldest_queued_seconds(self, name: str, now_ms: int) -> float:
        oldest = await self._ops.zrange(self._keys.queue(name), 0, 0, withscores=True)
        return max(0.0, (now_ms - oldest[0][1]) / 1000) if oldest else 0.0

    async def _count(self, stream: str, after: bytes) -> int | None:
        # Before 7.0, and after some deletions, Redis does not know; a short backlog can be counted.
        entries = await self._ops.xrange(stream, b"(" + after, "+", count=LAG_COUNT_LIMIT + 1)
        return len(entries) if len(entries) <= LAG_COUNT_LIMIT else None
