"""How old a stream's queue is, by which strict order gives turns: as what may go, on a real Redis."""

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from tests.adapters.redis.test_queue import FREE, ids, now_ms, parked, policy, settled, through_nomad
from worker.core.model import MessageKey

pytestmark = pytest.mark.anyio


async def test_a_queue_is_as_old_as_the_oldest_message_that_may_go(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(jobs={"slow": {"cap": 1}})
    ages: list[int] = []

    async def look(limit: int) -> list[MessageKey]:
        picked = await worker.queue.pick("requests", limit, limits)
        ages.append(picked.since_ms)
        return ids(picked)

    async def told(key: MessageKey) -> int:
        return int(float(await bench.redis.zscore(KEYS.queue("requests"), key.id)))

    first = await parked(bench, worker, job="slow", tenant="a")
    second = await parked(bench, worker, job="slow", tenant="a")
    await worker.queue.pick("requests", 0, limits)
    expected = [await told(first), 0]
    await look(0)
    assert await look(1) == [first]
    fresh = [await parked(bench, worker, job="fast", tenant=tenant) for tenant in ("b", "a")]
    await worker.queue.pick("requests", 0, limits)
    expected += [await told(fresh[0]), await told(fresh[1])]
    await look(0)
    assert await look(1) == [fresh[0]]
    record = await worker.ledger.recall(first)
    assert record is not None
    await settled(worker, await through_nomad(worker, record))
    expected.append(await told(second))
    await look(0)

    assert ages == expected


async def test_what_became_due_late_does_not_make_its_stream_younger(bench: Bench) -> None:
    worker = await bench.worker("a")
    soon = now_ms() + 60_000
    await parked(bench, worker, until_ms=soon, tenant="a")
    waits = await parked(bench, worker, tenant="b")
    worker.queue.now_ms = soon + 1

    picked = await worker.queue.pick("requests", 0, FREE)

    assert (picked.queued, picked.delayed) == (2, 0)
    assert picked.since_ms == int(float(await bench.redis.zscore(KEYS.queue("requests"), waits.id))) < soon
