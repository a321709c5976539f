"""Dead letters as the worker's own scripts write them."""

from collections.abc import AsyncIterator

import pytest

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from worker.client import DispatchClient, RedisOptions
from worker.core.lifecycle import Ended, advance
from worker.core.model import MessageKey, Outcome, Routing, Verdict
from worker.deadletter import DeadLetters
from worker.dev.embedded_redis import EmbeddedRedis
from worker.ports import Admission


class Morgue:
    """A Redis with dead letters in it."""

    def __init__(self, bench: Bench, worker: Worker, client: DispatchClient) -> None:
        self.bench = bench
        self.letters = DeadLetters(client)
        self.client = client
        self._worker = worker

    @property
    def environment(self) -> dict[str, str]:
        """For commands in processes of their own."""
        return {"REDIS_URL": self.bench.url, "WORKER_PREFIX": KEYS.prefix}

    async def dies(self, code: str = "nomad.job_unknown", tenant: str = "", **fields: bytes) -> MessageKey:
        """One request that is read, rejected, and dead-lettered."""
        key = await self.bench.request(**({"job": b"render"} | fields))
        await self._worker.reads()
        job = fields.get("job", b"render").decode()
        routing = Routing(job=job, namespace="default", tenant=tenant)
        record = await self._worker.ledger.admit(Admission(key, key.id, routing))
        assert record is not None
        outcome = Outcome(Verdict.REJECTED, error_code=code, error_message=f"it is {code}")
        await self._worker.ledger.settle(advance(record, Ended(outcome)))
        return key

    async def requests(self) -> list[dict[bytes, bytes]]:
        """What is in the request stream now."""
        return [fields for _, fields in await self.bench.redis.xrange(KEYS.stream("requests"))]


@pytest.fixture
async def morgue() -> AsyncIterator[Morgue]:
    async with EmbeddedRedis() as server:
        bench = Bench(server.url)
        async with DispatchClient(RedisOptions(server.url), prefix=KEYS.prefix) as client:
            yield Morgue(bench, await bench.worker("a"), client)
        await bench.close()
