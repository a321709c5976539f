"""A producer's idempotency key leads to its message for as long as the ledger remembers it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from worker.client import DispatchClient, RedisOptions
from worker.core.lifecycle import Ended, advance
from worker.core.model import Outcome, Phase, Verdict
from worker.core.request import Limits, decode_request, routing_of
from worker.dev.embedded_redis import EmbeddedRedis
from worker.ports import Admission

pytestmark = pytest.mark.anyio

LIMITS = Limits(KEYS)
LEDGER_SECONDS = 3_600
DAY_SECONDS = 86_400


@asynccontextmanager
async def bench_of_its_own() -> AsyncIterator[Bench]:
    async with EmbeddedRedis() as server:
        bench = Bench(server.url)
        try:
            yield bench
        finally:
            await bench.close()


async def test_a_key_outlives_its_own_time_while_the_message_is_open_and_remembered() -> None:
    async with bench_of_its_own() as bench:
        worker = await bench.worker("a")
        options = RedisOptions(bench.url)
        async with DispatchClient(options, prefix=KEYS.prefix, idempotency_seconds=60) as client:
            sent = await client.send(job="a/b", idempotency_key="order 17")
            marker = KEYS.idempotency_in("default", "a/b", "order 17")
            unread = await bench.redis.ttl(marker)

            (entry,) = await worker.reads()
            routing = routing_of(decode_request(entry.fields or {}, LIMITS), LIMITS)
            record = await worker.ledger.admit(Admission(entry.key, entry.key.id, routing))
            assert record is not None
            opened = await bench.redis.ttl(marker)

            outcome = Outcome(Verdict.REJECTED, error_code="request.expired")
            settled = await worker.ledger.settle(advance(record, Ended(outcome)))
            remembered = await bench.redis.ttl(marker)
            ledger = await bench.redis.ttl(KEYS.message(sent.key))
            again = await client.send(job="a/b", idempotency_key="order 17")

    assert settled.phase is Phase.SETTLED
    assert unread <= 60 < 300 * DAY_SECONDS < opened
    assert LEDGER_SECONDS - 60 < ledger <= remembered <= LEDGER_SECONDS
    assert (again.id, again.repeated) == (sent.id, True)


async def test_a_message_delivered_again_after_it_was_settled_keeps_its_key_no_longer() -> None:
    async with bench_of_its_own() as bench:
        worker = await bench.worker("a")
        marker = KEYS.idempotency_in("default", "render", "k")
        key = await bench.request()
        await bench.redis.set(marker, f"{key}:nonce", px=60_000)
        await worker.reads()
        record = await worker.admits(key, idempotency_key="k")
        assert record is not None
        await worker.ledger.settle(advance(record, Ended(Outcome(Verdict.EXPIRED))))

        # As by a group that was made again.
        assert await worker.admits(key, idempotency_key="k") is None

        assert await bench.redis.pttl(marker) <= LEDGER_SECONDS * 1000


async def test_a_key_that_leads_elsewhere_is_left_alone() -> None:
    async with bench_of_its_own() as bench:
        worker = await bench.worker("a")
        marker = KEYS.idempotency_in("default", "render", "k")
        await bench.redis.set(marker, "requests:1-10:nonce", px=60_000)
        key = await bench.request()
        await worker.reads()

        # As a requeued dead letter: the key is its predecessor's.
        await worker.admits(key, idempotency_key="k")

        assert await bench.redis.pttl(marker) <= 60_000
