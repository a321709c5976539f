"""A ledger on a real Redis, seen by several workers at once."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.adapters.redis.durability import Durability
from worker.adapters.redis.inbox import RedisInbox
from worker.adapters.redis.leases import LeaseOptions, RedisLeases
from worker.adapters.redis.ledger import LedgerOptions, RedisLedger
from worker.adapters.redis.queue import RedisQueue
from worker.adapters.redis.scripts import ScriptRunner
from worker.core.keys import Keys
from worker.core.model import Entry, MessageKey, Record, Routing
from worker.dev.embedded_redis import EmbeddedRedis
from worker.ports import Admission
from worker.runtime.clock import SystemClock

KEYS = Keys("{test}")
LEASE_MS = 60_000


@dataclass
class Worker:
    """The Redis side of one worker."""

    name: str
    ledger: RedisLedger
    leases: RedisLeases
    inbox: RedisInbox
    queue: RedisQueue
    runner: ScriptRunner

    async def reads(self, limit: int = 10) -> list[Entry]:
        return list(await self.inbox.read(limit))

    async def admits(self, key: MessageKey, **routing: Any) -> Record | None:
        about = {"job": "render", "namespace": "default", **routing}
        admission = Admission(key, token=key.id, routing=Routing(**about))
        return await self.ledger.admit(admission)


class Bench:
    """One Redis server and as many workers as a test wants."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._options = RedisOptions(url=url)
        self.redis: Any = connect(self._options, Purpose.OPS)
        self._workers: list[Worker] = []

    async def worker(
        self,
        name: str,
        *,
        beats: bool = True,
        steady: bool = True,
        lease_ms: int = LEASE_MS,
        durability: Durability = Durability.NONE,
    ) -> Worker:
        """One that has kept its lease for long, unless it is not to be `steady`."""
        runner = ScriptRunner(self.redis, durability)
        inbox = RedisInbox(
            self.redis, self.redis, KEYS, streams={"requests": 1}, group="workers", consumer=name, block_ms=10
        )
        ledger = RedisLedger(
            self.redis,
            runner,
            KEYS,
            SystemClock(),
            LedgerOptions(
                worker=name,
                group="workers",
                quarantine_ms=5_000,
                retention_ms=3_600_000,
                reply_maxlen=1_000,
                ui_address="http://nomad:4646",
            ),
        )
        leases = RedisLeases(
            runner,
            runner,
            self.redis,
            KEYS,
            LeaseOptions(
                worker=name, group="workers", lease_ms=lease_ms, streams=["requests"], about={"v": "1"}
            ),
        )
        await inbox.prepare()
        if beats:
            await leases.beat()
        if steady:
            await self.redis.hset(KEYS.worker(name), "steady_since", 1)
        queue = RedisQueue(self.redis, runner, KEYS, worker=name, group="workers", ages=True)
        worker = Worker(name, ledger, leases, inbox, queue, runner)
        self._workers.append(worker)
        return worker

    async def dies(self, worker: Worker) -> None:
        """Its lease is over, as if it had been killed long enough ago."""
        await self.redis.zadd(KEYS.workers, {worker.name: 1})

    async def request(self, **fields: bytes) -> MessageKey:
        entry_id = await self.redis.xadd(KEYS.stream("requests"), fields or {"job": b"render"})
        return MessageKey("requests", entry_id.decode())

    async def replies(self, name: str = "") -> list[dict[str, str]]:
        entries = await self.redis.xrange(KEYS.reply_stream(name))
        return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries]

    async def dead_letters(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in await self.redis.xrange(KEYS.dead)]

    async def pending(self) -> int:
        summary = await self.redis.xpending(KEYS.stream("requests"), "workers")
        return int(summary["pending"])

    async def close(self) -> None:
        for worker in self._workers:
            await worker.runner.close()
        await self.redis.aclose()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with EmbeddedRedis() as server:
        bench = Bench(server.url)
        yield bench
        await bench.close()
