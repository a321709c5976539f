"""Who is alive, and what becomes of what the dead held; on a real Redis."""

import asyncio

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from worker.core.lifecycle import Ended, Intended, JobAccepted, advance
from worker.core.model import Outcome, Phase, Record, Verdict

pytestmark = pytest.mark.anyio


def order(entry_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split("-"))


GONE = Outcome(Verdict.PAYLOAD_LOST, error_code="request.payload_lost")


async def test_the_living_are_left_alone(bench: Bench) -> None:
    a, b = await bench.worker("a"), await bench.worker("b")
    await bench.request()
    await a.reads()

    assert await b.leases.dead() == []


async def test_a_worker_without_a_lease_is_dead_and_its_entry_is_taken_once(bench: Bench) -> None:
    dead, b, c = await bench.worker("a"), await bench.worker("b"), await bench.worker("c")
    keys = [await bench.request() for _ in range(20)]
    await dead.reads(20)
    for key in keys[:10]:
        await dead.admits(key)
    await bench.dies(dead)

    (seen_by_b,), (seen_by_c,) = await b.leases.dead(), await c.leases.dead()
    taken_by_b, taken_by_c = await asyncio.gather(
        b.leases.take(seen_by_b, 100), c.leases.take(seen_by_c, 100)
    )

    assert sorted(record.key for record in [*taken_by_b, *taken_by_c]) == sorted(keys)
    assert {record.takeovers for record in [*taken_by_b, *taken_by_c]} == {1}
    assert await b.leases.dead() == []


async def test_an_entry_its_reader_never_admitted_can_be_admitted_by_the_taker(bench: Bench) -> None:
    dead, taker = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await dead.reads()
    await bench.dies(dead)
    (seen,) = await taker.leases.dead()
    (stub,) = await taker.leases.take(seen, 10)
    assert (stub.phase, stub.token) == (Phase.RECEIVED, "")

    record = await taker.admits(key)

    assert record is not None
    assert (record.token, record.takeovers, record.fence) == (key.id, 1, 1)
    assert [reply["type"] for reply in await bench.replies()] == ["accepted"]


async def test_a_worker_that_released_its_lease_counts_against_no_message(bench: Bench) -> None:
    leaver, taker = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await leaver.reads()
    await leaver.admits(key)

    await leaver.leases.release()

    (seen,) = await taker.leases.dead()
    (record,) = await taker.leases.take(seen, 10)
    assert seen.released
    assert (record.takeovers, record.fence) == (0, 2)


async def test_a_release_is_remembered_for_as_long_as_all_workers_may_be_stopped(bench: Bench) -> None:
    leaver = await bench.worker("a")

    await leaver.leases.release()

    assert await bench.redis.pttl(KEYS.worker("a")) > 6 * 24 * 3_600_000


async def test_a_message_whose_entry_is_gone_is_taken_again_where_the_answer_was_lost(bench: Bench) -> None:
    dead, taker, other = await bench.worker("a"), await bench.worker("b"), await bench.worker("c")
    key = await bench.request()
    await dead.reads()
    await dead.admits(key)
    await bench.redis.xdel(KEYS.stream("requests"), key.id)
    await bench.dies(dead)
    (seen,) = await taker.leases.dead()

    first = await taker.leases.take(seen, 10)
    others = await other.leases.take(seen, 10)
    again = await taker.leases.take(seen, 10)

    assert (first[0].fence, first[0].takeovers) == (2, 1)
    assert again == first
    assert others == []


async def test_a_worker_that_woke_up_in_time_keeps_its_messages(bench: Bench) -> None:
    sleeper, taker = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await sleeper.reads()
    await sleeper.admits(key)
    await bench.dies(sleeper)
    (seen,) = await taker.leases.dead()

    await sleeper.leases.beat()

    assert await taker.leases.take(seen, 10) == []


async def test_who_has_not_kept_a_lease_for_a_whole_one_takes_only_what_was_released(bench: Bench) -> None:
    silent, leaver = await bench.worker("a"), await bench.worker("b")
    newcomer = await bench.worker("c", steady=False)
    keys = [await bench.request(), await bench.request()]
    for worker in (silent, leaver):
        (entry,) = await worker.reads(1)
        await worker.admits(entry.key)
    await bench.dies(silent)
    await leaver.leases.release()

    seen = {dead.name: dead for dead in await newcomer.leases.dead()}
    refused = await newcomer.leases.take(seen["a"], 10)
    released = await newcomer.leases.take(seen["b"], 10)
    await bench.redis.hset(KEYS.worker("c"), "steady_since", 1)

    assert refused == []
    assert [record.key for record in released] == [keys[1]]
    assert [record.key for record in await newcomer.leases.take(seen["a"], 10)] == [keys[0]]


async def test_on_a_server_that_missed_beats_nobody_is_steady_and_nobody_takes_from_itself(
    bench: Bench,
) -> None:
    # As a replica looks that was cut off from its primary before it was promoted.
    a, b = await bench.worker("a"), await bench.worker("b")
    await bench.request()
    await a.reads()
    for worker in (a, b):
        await bench.dies(worker)
        await bench.redis.hset(KEYS.worker(worker.name), "seen_at", 1)

    own = await a.leases.dead()
    (seen,) = await b.leases.dead()
    before_any_beat = await b.leases.take(seen, 10)
    await b.leases.beat()
    after_one_beat = await b.leases.take(seen, 10)

    assert own == []
    assert before_any_beat == after_one_beat == []


async def test_a_lease_kept_without_a_gap_stays_as_old_as_it_is(bench: Bench) -> None:
    worker = await bench.worker("a", steady=False)
    since = await bench.redis.hget(KEYS.worker("a"), "steady_since")

    await worker.leases.beat()

    assert await bench.redis.hget(KEYS.worker("a"), "steady_since") == since


async def test_a_deleted_entry_stays_findable_until_its_message_is_settled(bench: Bench) -> None:
    first, second, third = await bench.worker("a"), await bench.worker("b"), await bench.worker("c")
    key = await bench.request()
    await first.reads()
    record = await first.admits(key)
    assert record is not None
    record = await first.ledger.keep(record, Intended(1))
    await first.ledger.keep(record, JobAccepted("render/dispatch-1-a", "e", 1))
    await bench.redis.xdel(KEYS.stream("requests"), key.id)
    await bench.dies(first)

    (seen,) = await second.leases.dead()
    (taken,) = await second.leases.take(seen, 10)
    (seen_again,) = await third.leases.dead()
    assert await third.leases.take(seen_again, 10) == []
    await bench.dies(second)
    (seen_again,) = await third.leases.dead()
    (taken,) = await third.leases.take(seen_again, 10)

    assert (taken.phase, taken.job_id, taken.fence) == (Phase.RUNNING, "render/dispatch-1-a", 3)
    await third.ledger.settle(advance(taken, Ended(Outcome(Verdict.SUCCEEDED))))
    assert await bench.pending() == 0
    assert await third.leases.dead() == []


async def test_an_entry_deleted_before_anyone_admitted_it_can_still_be_answered(bench: Bench) -> None:
    dead, taker = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await dead.reads()
    await bench.redis.xdel(KEYS.stream("requests"), key.id)
    await bench.dies(dead)
    (seen,) = await taker.leases.dead()
    (stub,) = await taker.leases.take(seen, 10)

    await taker.ledger.settle(advance(stub, Ended(GONE)))

    assert [reply["verdict"] for reply in await bench.replies()] == ["payload_lost"]
    assert await bench.pending() == 0


async def test_consumers_are_retired_only_without_lease_and_pending_entries(bench: Bench) -> None:
    holder, idle, alive = await bench.worker("a"), await bench.worker("b"), await bench.worker("c")
    for worker in (holder, idle, alive):
        key = await bench.request()
        await worker.reads()
        if worker is not holder:
            await bench.redis.xack(KEYS.stream("requests"), "workers", key.id)
    await bench.dies(holder)
    await bench.dies(idle)

    assert await alive.leases.retire() == 1

    consumers = await bench.redis.xinfo_consumers(KEYS.stream("requests"), "workers")
    assert {consumer["name"] for consumer in consumers} == {b"a", b"c"}
    assert await bench.redis.zscore(KEYS.workers, "b") is None


async def test_trimming_keeps_whatever_a_group_still_needs(bench: Bench) -> None:
    worker = await bench.worker("a")
    await bench.redis.config_set("stream-node-max-entries", 1)
    done = [await bench.request() for _ in range(5)]
    held = await bench.request()
    waiting = await bench.request()
    await worker.reads(6)
    await bench.redis.xack(KEYS.stream("requests"), "workers", *(key.id for key in done))

    assert await worker.leases.trim() == 5

    left = [entry_id.decode() for entry_id, _ in await bench.redis.xrange(KEYS.stream("requests"))]
    assert left == [held.id, waiting.id]
    floor = (await bench.redis.get(KEYS.floor("requests"))).decode()
    assert order(done[-1].id) <= order(floor) < order(held.id)


async def test_a_group_that_was_lost_starts_again_where_work_is_left(bench: Bench) -> None:
    worker = await bench.worker("a")
    done, held = await bench.request(), await bench.request()
    await worker.reads()
    await bench.redis.xack(KEYS.stream("requests"), "workers", done.id)
    await worker.leases.trim()
    await bench.redis.xgroup_destroy(KEYS.stream("requests"), "workers")

    await worker.inbox.prepare()

    assert [entry.key for entry in await worker.reads()] == [held]


async def test_a_recreated_group_gives_a_living_worker_its_message_back(
    bench: Bench,
) -> None:
    owner, other = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await owner.reads()
    await owner.admits(key)
    await bench.redis.xgroup_destroy(KEYS.stream("requests"), "workers")
    await other.inbox.prepare()
    await other.reads()

    assert await other.admits(key) is None

    assert list(await owner.inbox.mine()) == [key]
    assert list(await other.inbox.mine()) == []


async def test_entries_added_before_any_worker_started_are_read(bench: Bench) -> None:
    key = await bench.request(job=b"render", payload=b"\x00\xff")

    worker = await bench.worker("a")

    (entry,) = await worker.reads()
    assert (entry.key, entry.fields) == (key, {b"job": b"render", b"payload": b"\x00\xff"})


async def test_what_cannot_be_taken_does_not_hide_what_comes_after_it(bench: Bench) -> None:
    # 150 messages of a newer worker's making, in front of one that this worker can read.
    dead, taker = await bench.worker("a"), await bench.worker("b")
    keys = [await bench.request() for _ in range(151)]
    await dead.reads(200)
    for key in keys:
        await dead.admits(key)
    for key in keys[:-1]:
        await bench.redis.hset(KEYS.message(key), "v", "2")
    await bench.dies(dead)

    taken: list[Record] = []
    more = True
    while more:
        (seen,) = await taker.leases.dead()
        taken += await taker.leases.take(seen, 1_000)
        more = seen.more

    assert [record.key for record in taken] == [keys[-1]]
    (again,) = await taker.leases.dead()
    assert list(again.pending) == keys[:100]


@pytest.mark.parametrize(
    "last", ["9007199254740993-9007199254740993", "18446744073709551615-5", "7-18446744073709551615"]
)
async def test_trimming_copes_with_ids_beyond_what_a_double_holds(bench: Bench, last: str) -> None:
    worker = await bench.worker("a")
    stream = KEYS.stream("requests")
    await bench.redis.config_set("stream-node-max-entries", 1)
    for entry_id in ("5-1", "5-2", last):
        await bench.redis.xadd(stream, {"job": "render"}, id=entry_id)
    await worker.reads()
    await bench.redis.xack(stream, "workers", "5-1", "5-2", last)

    await worker.leases.trim()

    await bench.redis.xgroup_destroy(stream, "workers")
    await worker.inbox.prepare()
    assert [entry.key.id for entry in await worker.reads()] in ([], [last])
    assert len(await bench.redis.xrange(stream)) <= 1
