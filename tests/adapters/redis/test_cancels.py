"""Cancelling in the ledger: a promise given before the dispatch holds, whoever owns the message."""

import pytest

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from worker.adapters.redis.cancels import RedisCancels
from worker.client import Cancelled, DispatchClient, RedisOptions
from worker.core.lifecycle import Ended, Intended, JobAccepted, advance
from worker.core.model import MessageKey, Outcome, Phase, Record, Verdict

pytestmark = pytest.mark.anyio

CANCELLED = Ended(Outcome(Verdict.CANCELLED, error_code="request.cancelled"))


async def order(bench: Bench, key: MessageKey) -> Cancelled:
    async with DispatchClient(RedisOptions(bench.url), prefix=KEYS.prefix) as client:
        return await client.cancel(key.stream, key.id)


async def admitted(bench: Bench, worker: Worker) -> Record:
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None
    return record


async def test_an_order_from_before_the_entry_was_read_is_found_at_admission(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request()
    await order(bench, key)

    await worker.reads()
    record = await worker.admits(key)

    assert record is not None
    assert record.cancel


async def test_a_message_cancelled_before_its_intent_is_not_dispatched(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await admitted(bench, worker)
    assert await order(bench, record.key) is Cancelled.PREVENTED

    kept = await worker.ledger.keep(record, Intended(1))

    assert (kept.phase, kept.attempt, kept.cancel) == (Phase.RECEIVED, 0, True)


async def test_a_repeated_intent_brings_the_order_along(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await worker.ledger.keep(await admitted(bench, worker), Intended(1))
    assert await order(bench, record.key) is Cancelled.ORDERED

    kept = await worker.ledger.keep(record, Intended(1))

    assert (kept.phase, kept.cancel) == (Phase.DISPATCHING, True)


async def test_an_order_outlasts_its_worker(bench: Bench) -> None:
    former, taker = await bench.worker("a"), await bench.worker("b")
    record = await former.ledger.keep(await admitted(bench, former), Intended(1))
    await former.ledger.keep(record, JobAccepted("render/dispatch-1-a", "e", 1))
    await order(bench, record.key)
    await bench.dies(former)

    (dead,) = await taker.leases.dead()
    (taken,) = await taker.leases.take(dead, 10)

    assert taken.cancel


async def test_settling_ends_the_order(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await admitted(bench, worker)
    await order(bench, record.key)
    assert await bench.redis.zcard(KEYS.cancels) == 1

    await worker.ledger.settle(advance(record, CANCELLED))

    assert await bench.redis.zcard(KEYS.cancels) == 0
    assert await order(bench, record.key) is Cancelled.TOO_LATE
    assert await bench.redis.zcard(KEYS.cancels) == 0
    assert await bench.dead_letters() == []


async def test_workers_hear_of_orders_and_find_all_open_ones(bench: Bench) -> None:
    first, second = await bench.request(), await bench.request()
    await order(bench, first)
    cancels = RedisCancels(bench.redis, KEYS, block_ms=1)

    known = await cancels.open()
    await order(bench, second)
    heard, later = await cancels.listen(), await cancels.listen()

    assert (known, heard, later) == ([first], [second], [])
    assert set(await cancels.open()) == {first, second}
