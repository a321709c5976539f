"""Who is alive: one lease per worker on Redis's clock, and the hand-over of what the dead held.

Decides nothing about when to look or how much to take; see `runtime.housekeeping`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.adapters.redis.connection import FAILURES, server_time_ms, translate
from worker.adapters.redis.records import decode_record
from worker.adapters.redis.scripts import Script, ScriptRunner, pack
from worker.core.keys import Keys
from worker.core.model import LEDGER_VERSION, WAITING_CONSUMER, MessageKey, Record
from worker.errors import GroupMissing
from worker.ports import DeadWorker, Expiry

TAKE_BATCH = 100
"""Messages per TAKE script: some milliseconds of the server's time."""
SWEEP_FEWEST = 1_000
"""Settled entries that TRIM may leave behind."""
SWEEP_MOST = 100
"""Entries per SWEEP script: it reads them, payloads and all."""
SWEEPS = 1_000
"""SWEEP scripts in a row: 100,000 entries."""


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """This worker's name and lease; `streams` are short names, `about` is shown to people."""

    worker: str
    group: str
    lease_ms: int
    streams: Sequence[str]
    about: Mapping[str, str]


class RedisLeases:
    """Implements `ports.Leases`.

    Args:
        beats: runs on a connection of its own, so that no slow command delays a heartbeat.
        runner, ops: for everything else.
    """

    def __init__(
        self, beats: ScriptRunner, runner: ScriptRunner, ops: Any, keys: Keys, options: LeaseOptions
    ) -> None:
        self._beats = beats
        self._runner = runner
        self._ops = ops
        self._keys = keys
        self._options = options
        self._read_up_to: dict[tuple[str, str], str] = {}
        """Stream and dead worker to the last entry listed, while there is more to list."""
        self._swept_to: dict[str, str] = {}
        """By stream, where the next sweep goes on."""

    async def beat(self) -> int:
        """See `ports.Leases.beat`."""
        options = self._options
        about = [part for item in options.about.items() for part in item]
        now = await self._beats.run(
            Script.BEAT, self._own_keys(), [options.worker, options.lease_ms, pack(about)]
        )
        return int(now)

    async def release(self) -> None:
        """See `ports.Leases.release`."""
        await self._beats.run(Script.RELEASE, self._own_keys(), [self._options.worker])

    async def dead(self) -> Sequence[DeadWorker]:
        """See `ports.Leases.dead`. Lists up to `TAKE_BATCH` entries per worker and stream."""
        try:
            alive = await self._alive()
            found = [
                DeadWorker(
                    name,
                    await self._held(stream, name),
                    await self._released(name),
                    more=(stream, name) in self._read_up_to,
                )
                for stream in self._options.streams
                for name in await self._holders(stream)
                if name not in alive and name != self._options.worker
            ]
        except FAILURES as error:
            named = translate(error)
            if isinstance(named, GroupMissing):
                return []
            raise named from error
        return [dead for dead in found if dead.pending]

    async def take(self, dead: DeadWorker, limit: int) -> Sequence[Record]:
        """See `ports.Leases.take`."""
        options, keys = self._options, dead.pending[:limit]
        if not keys:
            return []
        stream = keys[0].stream
        answer = await self._runner.run(
            Script.TAKE,
            [
                *(self._keys.stream(stream), self._keys.workers),
                *(self._keys.worker(dead.name), self._keys.worker(options.worker)),
                *(self._keys.message(key) for key in keys),
            ],
            [
                *(options.group, options.worker, dead.name, LEDGER_VERSION, options.lease_ms),
                *(key.id for key in keys),
            ],
        )
        if answer[0] != b"ok":
            return []
        return [decode_record(MessageKey(stream, entry_id.decode()), flat) for entry_id, flat in answer[1:]]

    async def retire(self) -> int:
        """See `ports.Leases.retire`."""
        try:
            alive, names = await self._alive(), set[str]()
            for stream in self._options.streams:
                consumers = await self._ops.xinfo_consumers(self._keys.stream(stream), self._options.group)
                names |= {consumer["name"].decode() for consumer in consumers}
        except FAILURES as error:
            raise translate(error) from error
        streams = [self._keys.stream(name) for name in self._options.streams]
        retired = 0
        for name in sorted(names - alive - {WAITING_CONSUMER}):
            retired += await self._runner.run(
                Script.RETIRE, [self._keys.workers, *streams], [self._options.group, name]
            )
        return retired

    async def trim(self) -> int:
        """See `ports.Leases.trim`."""
        dropped = 0
        for name in self._options.streams:
            dropped += await self._runner.run(
                Script.TRIM, [self._keys.stream(name), self._keys.floor(name)], []
            )
            dropped += await self._sweep(name)
        return dropped

    async def _sweep(self, stream: str) -> int:
        dropped = 0
        for _ in range(SWEEPS):
            deleted, next_after = await self._runner.run(
                Script.SWEEP,
                [self._keys.stream(stream)],
                [self._options.group, self._swept_to.get(stream, "-"), SWEEP_FEWEST, SWEEP_MOST],
            )
            dropped += int(deleted)
            self._swept_to[stream] = next_after.decode()
            if not next_after:
                del self._swept_to[stream]
                break
        return dropped

    async def expire_dead(self, retention_seconds: float, notice_seconds: float) -> Expiry:
        """See `ports.Leases.expire_dead`."""
        dropped, announced, left_ms = await self._runner.run(
            Script.EXPIRE_DEAD,
            [self._keys.dead, self._keys.dead_notice],
            [int(retention_seconds * 1000), int(notice_seconds * 1000)],
        )
        return Expiry(int(dropped), int(announced), int(left_ms) / 1000)

    def _own_keys(self) -> list[str]:
        return [self._keys.workers, self._keys.worker(self._options.worker)]

    async def _alive(self) -> set[str]:
        now_ms = await server_time_ms(self._ops, self._keys.workers)
        members = await self._ops.zrangebyscore(self._keys.workers, f"({now_ms}", "+inf")
        return {member.decode() for member in members}

    async def _holders(self, stream: str) -> list[str]:
        summary = await self._ops.xpending(self._keys.stream(stream), self._options.group)
        names = [consumer["name"].decode() for consumer in summary["consumers"] or []]
        return [name for name in names if name != WAITING_CONSUMER]

    async def _released(self, name: str) -> bool:
        return bool(await self._ops.hexists(self._keys.worker(name), "released"))

    async def _held(self, stream: str, name: str) -> list[MessageKey]:
        """The next page. What cannot be taken (see take.lua) must not hide what comes after it."""
        place = (stream, name)
        start = f"({self._read_up_to[place]}" if place in self._read_up_to else "-"
        page = await self._ops.xpending_range(
            self._keys.stream(stream), self._options.group, start, "+", TAKE_BATCH, name
        )
        held = [MessageKey(stream, item["message_id"].decode()) for item in page]
        if len(held) == TAKE_BATCH:
            self._read_up_to[place] = held[-1].id
        else:
            self._read_up_to.pop(place, None)
        return held
