"""Messages that wait in Redis: parked, picked in their turn, within caps and rates; on a real Redis."""

import random
import time
from collections import Counter
from typing import Any

import pytest

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from worker.adapters.redis.survey import RedisSurvey
from worker.core.lifecycle import Ended, Intended, JobAccepted, Parked, advance
from worker.core.model import WAITING_CONSUMER, MessageKey, Outcome, Phase, Record, Verdict
from worker.core.policy import Policy
from worker.errors import Fenced, IllegalTransition
from worker.ports import Picked

pytestmark = pytest.mark.anyio

FREE = Policy()
DONE = Outcome(Verdict.SUCCEEDED)
LONG = 3_600_000


def policy(**limits: Any) -> Policy:
    return Policy.parse({"limits": limits})


def now_ms() -> int:
    return round(time.time() * 1000)


async def parked(
    bench: Bench, worker: Worker, *, until_ms: int = 0, deadline_ms: int = 0, **routing: Any
) -> MessageKey:
    """A message read, admitted and put into the queue by this worker."""
    key = await bench.request(job=b"render")
    assert [entry.key for entry in await worker.reads()] == [key]
    record = await worker.admits(key, **routing)
    assert record is not None
    record = await worker.ledger.keep(record, Parked(until_ms, deadline_ms))
    assert record.phase is Phase.WAITING
    return key


def ids(picked: Picked) -> list[MessageKey]:
    return [record.key for record, _ in picked.messages]


async def settled(worker: Worker, record: Record) -> None:
    await worker.ledger.settle(advance(record, Ended(DONE)))


async def slots(bench: Bench, scope: str) -> list[bytes]:
    return [member.partition(b"\t")[0] for member in await bench.redis.zrange(KEYS.cap(scope), 0, -1)]


async def consumers(bench: Bench) -> Counter[str]:
    summary = await bench.redis.xpending(KEYS.stream("requests"), "workers")
    return Counter(
        {item["name"].decode(): int(item["pending"]) for item in summary["consumers"] or []},
    )


async def test_a_parked_message_is_nobodys_and_comes_back_whole(bench: Bench) -> None:
    first, second = await bench.worker("a"), await bench.worker("b")
    key = await parked(bench, first)
    held = await consumers(bench)

    picked = await second.queue.pick("requests", 10, FREE)

    ((record, entry),) = picked.messages
    assert held == {WAITING_CONSUMER: 1}
    assert await consumers(bench) == {"b": 1}
    assert (record.key, record.phase, record.token, record.fence) == (key, Phase.RECEIVED, key.id, 3)
    assert record.picked_at_ms > 0
    assert entry.fields == {b"job": b"render"}
    assert (picked.queued, picked.delayed) == (0, 0)
    assert [reply["type"] for reply in await bench.replies()] == ["accepted"]
    await settled(second, await through_nomad(second, record))
    assert await bench.pending() == 0


async def through_nomad(worker: Worker, record: Record) -> Record:
    record = await worker.ledger.keep(record, Intended(1))
    return await worker.ledger.keep(record, JobAccepted(f"render/dispatch-1-{record.key.id}", "e", 1))


async def test_parking_again_after_a_lost_answer_changes_nothing(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None

    once = await worker.ledger.keep(record, Parked(0, 0))
    again = await worker.ledger.keep(record, Parked(0, 0))

    assert once == again
    picked = await worker.queue.pick("requests", 10, FREE)
    assert ids(picked) == [key]


async def test_who_lost_the_message_or_intended_already_cannot_park_it(bench: Bench) -> None:
    worker, other = await bench.worker("a"), await bench.worker("b")
    await parked(bench, worker)
    ((record, _),) = (await other.queue.pick("requests", 1, FREE)).messages

    with pytest.raises(Fenced):
        await worker.ledger.keep(record, Parked(0, 0))
    await other.ledger.keep(record, Intended(1))
    with pytest.raises(IllegalTransition):
        await other.ledger.keep(record, Parked(0, 0))


async def test_a_delayed_message_is_given_out_when_it_is_due_and_not_before(bench: Bench) -> None:
    worker = await bench.worker("a")
    due = now_ms() + LONG
    key = await parked(bench, worker, until_ms=due)

    early = await worker.queue.pick("requests", 10, FREE)
    worker.queue.now_ms = due - 1
    just_before = await worker.queue.pick("requests", 10, FREE)
    worker.queue.now_ms = due
    picked = await worker.queue.pick("requests", 10, FREE)

    assert (ids(early), early.delayed, early.look_again_ms) == ([], 1, due)
    assert ids(just_before) == []
    assert ids(picked) == [key]


async def test_a_deadline_that_passes_gives_the_message_out_to_be_answered(bench: Bench) -> None:
    worker = await bench.worker("a")
    full = policy(cap=0)
    deadline = now_ms() + LONG
    key = await parked(bench, worker, deadline_ms=deadline)
    before = await worker.queue.pick("requests", 10, full)

    worker.queue.now_ms = deadline + 1
    picked = await worker.queue.pick("requests", 0, full)

    assert (ids(before), before.look_again_ms) == ([], deadline)
    assert ids(picked) == [key]
    assert picked.messages[0][0].picked_at_ms == 0
    assert picked.queued == 0


async def test_the_order_to_cancel_takes_a_message_out_of_the_queue(bench: Bench) -> None:
    worker = await bench.worker("a")
    full = policy(cap=0)
    key = await parked(bench, worker, until_ms=now_ms() + LONG)
    await cancel(bench, key)

    picked = await worker.queue.pick("requests", 0, full)

    ((record, _),) = picked.messages
    assert record.cancel
    assert picked.delayed == 0


async def cancel(bench: Bench, key: MessageKey) -> None:
    from worker.client.cancelling import _SCRIPT  # noqa: PLC0415

    keys = [
        *(KEYS.stream(key.stream), KEYS.message(key), KEYS.cancels, KEYS.control),
        *(KEYS.floor(key.stream), KEYS.deadlines(key.stream)),
    ]
    answer = await bench.redis.eval(_SCRIPT.source, len(keys), *keys, key.id, 1_000_000)
    assert answer == [b"prevented"]


async def test_a_message_cancelled_on_its_way_is_not_parked(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None
    await cancel(bench, key)

    record = await worker.ledger.keep(record, Parked(0, 0))

    assert (record.phase, record.cancel) == (Phase.RECEIVED, True)


async def test_every_cap_holds_and_gives_its_slot_back_when_the_message_is_settled(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(
        cap=5,
        jobs={"re*": {"cap": 3, "shared": True}, "render": {"cap": 2}},
        tenants={"*": {"cap": 1}},
        namespaces={"slow": {"cap": 1}},
        streams={"requests": {"cap": 4}},
    )
    for job, tenant, namespace in [
        ("render", "a", "default"),
        ("render", "a", "default"),  # the tenant's cap
        ("render", "b", "default"),
        ("render", "c", "default"),  # the job's cap
        ("remux", "d", "slow"),
        ("remux", "e", "slow"),  # the namespace's cap
        ("remux", "f", "default"),
        ("other", "g", "default"),  # the stream's cap
    ]:
        await parked(bench, worker, job=job, tenant=tenant, namespace=namespace)

    first = await worker.queue.pick("requests", 10, limits)
    none = await worker.queue.pick("requests", 10, limits)
    taken = {record.routing.tenant for record, _ in first.messages}
    held = {scope: Counter(await slots(bench, scope)) for scope in ("total", "stream", "job", "tenant")}
    by_tenant = {record.routing.tenant: record for record, _ in first.messages}
    await settled(worker, await through_nomad(worker, by_tenant["a"]))
    after = await worker.queue.pick("requests", 10, limits)

    assert taken == {"a", "b", "d", "f"}
    assert ids(none) == []
    assert held == {
        "total": {b"": 4},
        "stream": {b"requests": 4},
        "job": {b"render": 2, b"re*": 2},
        "tenant": {b"a": 1, b"b": 1, b"d": 1, b"f": 1},
    }
    # Who never had a turn comes before who had one.
    assert [record.routing.tenant for record, _ in after.messages] == ["c"]


async def test_a_taken_over_message_keeps_its_slot(bench: Bench) -> None:
    dead, other = await bench.worker("a"), await bench.worker("b")
    limits = policy(cap=1)
    await parked(bench, dead)
    await parked(bench, dead)
    ((record, _),) = (await dead.queue.pick("requests", 5, limits)).messages
    await dead.ledger.keep(record, Intended(1))
    await bench.dies(dead)
    while_dead = await other.queue.pick("requests", 5, limits)

    (seen,) = await other.leases.dead()
    (taken,) = await other.leases.take(seen, 10)
    still = await other.queue.pick("requests", 5, limits)
    taken = await other.ledger.keep(taken, JobAccepted("render/dispatch-1-a", "e", 1))
    await settled(other, taken)
    freed = await other.queue.pick("requests", 5, limits)

    assert (ids(while_dead), ids(still)) == ([], [])
    assert len(freed.messages) == 1


async def test_the_waiting_are_no_dead_workers_and_are_not_retired(bench: Bench) -> None:
    worker = await bench.worker("a")
    await parked(bench, worker)

    assert await worker.leases.dead() == []
    assert await worker.leases.retire() == 0
    assert await consumers(bench) == {WAITING_CONSUMER: 1}


async def test_a_tenants_flood_delays_another_by_one_turn(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(tenants={"*": {}})
    for _ in range(30):
        await parked(bench, worker, tenant="flood")
    await worker.queue.pick("requests", 10, limits)

    key = await parked(bench, worker, tenant="small")
    picked = await worker.queue.pick("requests", 2, limits)

    assert key in ids(picked)


async def test_tenants_share_by_weight_and_absence_is_no_credit(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(tenants={"big": {"weight": 3}, "*": {"weight": 1}})
    for _ in range(40):
        for tenant in ("big", "one"):
            await parked(bench, worker, tenant=tenant)
    shared = Counter[str]()
    for _ in range(20):
        picked = await worker.queue.pick("requests", 1, limits)
        shared.update(record.routing.tenant for record, _ in picked.messages)
    for _ in range(10):
        await parked(bench, worker, tenant="late")
    with_late = await worker.queue.pick("requests", 15, limits)

    assert shared == {"big": 15, "one": 5}
    late = Counter(record.routing.tenant for record, _ in with_late.messages)
    assert late["big"] == 9
    assert late["one"] == late["late"] == 3


async def test_a_tenant_that_trickles_gets_no_more_than_its_share(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(tenants={"*": {}})
    for _ in range(20):
        await parked(bench, worker, tenant="flood")
    turns: list[str] = []
    for _ in range(10):
        # Its queue is empty whenever it is not its turn.
        if "trickle" not in turns[-1:]:
            await parked(bench, worker, tenant="trickle")
        picked = await worker.queue.pick("requests", 1, limits)
        turns += [record.routing.tenant for record, _ in picked.messages]

    assert Counter(turns) == {"flood": 5, "trickle": 5}


async def test_a_rate_gives_a_burst_and_then_its_pace(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(jobs={"render": {"per_second": 2.0, "burst": 3}})
    for _ in range(10):
        await parked(bench, worker)
    other = await parked(bench, worker, job="remux")
    start = now_ms()
    worker.queue.now_ms = start

    burst = await worker.queue.pick("requests", 10, limits)
    worker.queue.now_ms = start + 499
    early = await worker.queue.pick("requests", 10, limits)
    worker.queue.now_ms = start + 500
    paced = await worker.queue.pick("requests", 10, limits)
    worker.queue.now_ms = start + 60_000
    rested = await worker.queue.pick("requests", 10, limits)

    assert len(burst.messages) == 4
    assert other in ids(burst)
    assert burst.look_again_ms == start + 500
    assert (len(early.messages), len(paced.messages), len(rested.messages)) == (0, 1, 3)


async def test_within_a_tenant_the_oldest_that_may_go_goes(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(jobs={"render": {"cap": 1}})
    first = await parked(bench, worker, job="render")
    await parked(bench, worker, job="render")
    third = await parked(bench, worker, job="zip")
    fourth = await parked(bench, worker, job="avg")

    picked = await worker.queue.pick("requests", 10, limits)

    assert ids(picked) == [first, third, fourth]


async def test_many_flows_that_may_not_go_do_not_hide_the_one_that_may(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(jobs={"full-*": {"cap": 0}}, tenants={"none": {"cap": 0}})
    await adds(bench, 1_500)
    for number, entry in enumerate(await worker.reads(2_000)):
        tenant = f"tenant-{number % 700:04}" if number < 1_400 else "0"
        record = await worker.admits(entry.key, job=f"full-{number}", tenant=tenant)
        assert record is not None
        await worker.ledger.keep(record, Parked(0, 0))
    last = await parked(bench, worker, job="free", tenant="tenant-0650")

    found = []
    for _ in range(10):
        picked = await worker.queue.pick("requests", 5, limits)
        found += ids(picked)
        if found:
            break
        assert 0 < picked.look_again_ms <= now_ms()

    assert found == [last]


async def test_a_recreated_group_delivers_what_waits_again_and_it_waits_again(bench: Bench) -> None:
    worker = await bench.worker("a")
    due = now_ms() + LONG
    key = await parked(bench, worker, until_ms=due)
    await bench.redis.xgroup_destroy(KEYS.stream("requests"), "workers")
    await worker.inbox.prepare()

    (entry,) = await worker.reads()
    record = await worker.admits(entry.key)
    assert record is not None
    assert (record.key, record.phase, record.fence) == (key, Phase.RECEIVED, 3)
    await worker.ledger.keep(record, Parked(due, 0))

    worker.queue.now_ms = due
    assert ids(await worker.queue.pick("requests", 5, FREE)) == [key]
    assert [reply["type"] for reply in await bench.replies()] == ["accepted"]


async def test_what_waits_and_was_read_again_by_a_worker_that_died_is_taken_over(bench: Bench) -> None:
    dead, other = await bench.worker("a"), await bench.worker("b")
    await parked(bench, dead, until_ms=now_ms() + LONG)
    await bench.redis.xgroup_destroy(KEYS.stream("requests"), "workers")
    await dead.inbox.prepare()
    await dead.reads()
    await bench.dies(dead)

    (seen,) = await other.leases.dead()
    (record,) = await other.leases.take(seen, 5)

    assert record.phase is Phase.RECEIVED
    assert (await other.ledger.keep(record, Parked(0, 0))).phase is Phase.WAITING


async def test_a_lost_index_is_made_again_out_of_ledger_and_pending_list(bench: Bench) -> None:
    worker = await bench.worker("a")
    due = now_ms() + LONG
    keys = [await parked(bench, worker, tenant=tenant) for tenant in ("a", "b", "a")]
    keys.append(await parked(bench, worker, until_ms=due))
    expiring = await parked(bench, worker, deadline_ms=due)
    await bench.redis.delete(*KEYS.waiting("requests"))
    assert (await worker.queue.pick("requests", 0, FREE)).queued == 0

    assert await worker.queue.mend("requests") == []

    looked = await worker.queue.pick("requests", 0, FREE)
    assert (looked.queued, looked.delayed) == (4, 1)
    worker.queue.now_ms = due + 1
    picked = await worker.queue.pick("requests", 10, FREE)
    assert sorted(ids(picked)) == sorted([*keys, expiring])


async def test_a_waiting_message_whose_ledger_is_lost_is_taken_up_anew(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await parked(bench, worker)
    await bench.redis.delete(KEYS.message(key), *KEYS.waiting("requests"))

    found = await worker.queue.mend("requests")

    assert found == [key]
    record = await worker.admits(key)
    assert record is not None
    assert record.phase is Phase.RECEIVED


async def test_a_waiting_message_whose_entry_is_deleted_can_still_be_answered(bench: Bench) -> None:
    worker, other = await bench.worker("a"), await bench.worker("b")
    key = await parked(bench, worker)
    await bench.redis.xdel(KEYS.stream("requests"), key.id)

    ((record, entry),) = (await worker.queue.pick("requests", 5, FREE)).messages
    nobody = await other.queue.mend("requests")
    # Had the answer been lost, the picker would find it here.
    (mended,) = await worker.queue.mend("requests")
    await bench.dies(worker)
    (adopted,) = await other.queue.mend("requests")

    assert entry.fields is None
    assert nobody == []
    assert mended == record
    assert isinstance(adopted, Record)
    assert adopted.fence == record.fence + 1
    await other.ledger.settle(advance(adopted, Ended(Outcome(Verdict.PAYLOAD_LOST))))
    assert await bench.pending() == 0


async def test_slots_of_messages_that_are_gone_are_given_back(bench: Bench) -> None:
    worker = await bench.worker("a")
    limits = policy(cap=3, tenants={"*": {"cap": 2}})
    for _ in range(2):
        await parked(bench, worker, tenant="acme")
    (lost, _), (kept, _) = (await worker.queue.pick("requests", 5, limits)).messages
    await bench.redis.delete(KEYS.message(lost.key))
    await bench.redis.zadd(KEYS.cap("job"), {f"never\t{KEYS.message(kept.key)}": 0})

    freed = await worker.queue.recount()

    assert freed == 3
    assert await slots(bench, "total") == [b""]
    assert await slots(bench, "tenant") == [b"acme"]
    assert await slots(bench, "job") == []


async def test_a_message_in_hand_takes_the_slots_of_limits_that_came_after_it(bench: Bench) -> None:
    worker = await bench.worker("a")
    await parked(bench, worker, tenant="acme")
    ((record, _),) = (await worker.queue.pick("requests", 5, FREE)).messages
    record = await through_nomad(worker, record)

    await worker.queue.occupy(record, policy(cap=1, jobs={"r*": {"cap": 1, "shared": True}}))
    by_first = (await slots(bench, "total"), await slots(bench, "job"))
    await worker.queue.occupy(record, policy(tenants={"*": {"cap": 4}}))
    by_second = [await slots(bench, scope) for scope in ("total", "job", "tenant")]
    await settled(worker, record)

    assert by_first == ([b""], [b"r*"])
    assert by_second == [[], [], [b"acme"]]
    assert await slots(bench, "tenant") == []


async def test_slots_are_those_that_the_policy_names(bench: Bench) -> None:
    worker = await bench.worker("a")
    chance = random.Random(7)
    limits = policy(
        cap=1_000,
        jobs={"r[a-e]*": {"cap": 9}, "re*r": {"cap": 9, "shared": True}, "?ip": {"cap": 9, "shared": True}},
        tenants={"*": {"cap": 90}, "t-é*": {"cap": 90, "shared": True}, "[!t]*": {"cap": 90, "shared": True}},
        namespaces={"prod": {"cap": 100}, "p*": {"cap": 100, "shared": True}},
    )
    for _ in range(60):
        await parked(
            bench,
            worker,
            job=chance.choice(["render", "remux", "zip", "éip", "a.b", "rzip"]),
            tenant=chance.choice(["", "t-1", "t-été", "x", "ü"]),
            namespace=chance.choice(["prod", "pre", "dev"]),
        )
    while True:
        picked = await worker.queue.pick("requests", 50, limits)
        for record, _ in picked.messages:
            stored = await bench.redis.hget(KEYS.message(record.key), "slots")
            named = [f"{cap.scope}\t{cap.name}" for cap in limits.caps("requests", record.routing)]
            assert sorted(stored.decode().split("\n")) == sorted(named)
        if not picked.messages:
            break
    assert len(await slots(bench, "total")) > 40


async def test_what_waits_is_told_apart_from_what_a_worker_holds(bench: Bench) -> None:
    worker = await bench.worker("a")
    survey = RedisSurvey(bench.redis, KEYS, streams=["requests"], group="workers")
    for _ in range(2):
        await parked(bench, worker)
    await parked(bench, worker, until_ms=now_ms() + LONG)
    await worker.queue.pick("requests", 1, policy(cap=1))

    backlog = await survey.backlog()

    stream = backlog.streams["requests"]
    assert (stream.pending, stream.queued, stream.delayed, stream.in_hand) == (3, 1, 1, 1)
    assert stream.oldest_queued_seconds is not None
    assert 0 <= stream.oldest_queued_seconds < 60
    assert backlog.slots_taken == {"total": 1, "stream": 0, "job": 0, "namespace": 0, "tenant": 0}


async def test_a_message_that_waits_long_does_not_hold_the_settled_behind_it(bench: Bench) -> None:
    worker = await bench.worker("a")
    stream = KEYS.stream("requests")
    first = await parked(bench, worker, until_ms=now_ms() + LONG)
    await adds(bench, 1_500)
    settled_ids = [entry.key.id for entry in await worker.reads(1_500)]
    middle = settled_ids.pop(700)
    await bench.redis.xack(stream, "workers", *settled_ids)
    await adds(bench, 300)

    dropped = await worker.leases.trim()

    left = [entry_id.decode() for entry_id, _ in await bench.redis.xrange(stream)]
    (group,) = await bench.redis.xinfo_groups(stream)
    assert dropped == 1_498
    # The one at the cursor stays: without it Redis would not know the lag.
    assert left[:3] == [first.id, middle, settled_ids[-1]]
    assert (len(left), group["lag"], group["pending"]) == (303, 300, 2)
    assert await worker.leases.trim() == 0


async def test_what_another_group_reads_is_not_swept(bench: Bench) -> None:
    worker = await bench.worker("a")
    stream = KEYS.stream("requests")
    await bench.redis.xgroup_create(stream, "others", id="0")
    await parked(bench, worker, until_ms=now_ms() + LONG)
    await adds(bench, 1_500)
    ids_read = [entry.key.id for entry in await worker.reads(1_500)]
    await bench.redis.xack(stream, "workers", *ids_read)

    assert await worker.leases.trim() == 0
    assert await bench.redis.xlen(stream) == 1_501


async def adds(bench: Bench, number: int) -> None:
    pipeline = bench.redis.pipeline(transaction=False)
    for _ in range(number):
        pipeline.xadd(KEYS.stream("requests"), {"job": "render"})
    await pipeline.execute()
