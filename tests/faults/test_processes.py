"""Processes that hang, wake up late, disagree about the time, are of two versions, or crowd each other."""

import asyncio
import json
import os
import sys

import httpx
import pytest

from tests.faults.checker import all_is_well
from tests.faults.planned import DEAF, PROGRAM, start_with, step
from tests.processes.fleet import KEYS, ROOT, STREAM, Fleet, WorkerProcess, until
from tests.processes.jobs import scripted
from tests.processes.test_queue import limited
from worker.core.model import MessageKey

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


async def is_alive(worker: WorkerProcess) -> bool:
    return (await worker.get("/healthz")).is_success


async def test_F10_a_blocked_event_loop_gives_its_messages_up(world: Fleet) -> None:
    stuck, _ = await asyncio.gather(
        start_with(world, step("ledger.settle", "block", "before")), start_with(world, DEAF)
    )
    message_id = await world.send(job="render")

    final = await world.final(message_id, 30)

    assert final.worker != stuck.name
    with pytest.raises(httpx.TimeoutException):  # a probe that times out restarts it
        await stuck.get("/healthz")
    await all_is_well(world, {message_id: 0})


async def test_F10_a_hung_loop_in_a_living_process_fails_its_probe_and_gives_up_the_lease(
    world: Fleet,
) -> None:
    hung, other = await asyncio.gather(
        start_with(world, step("inbox.read", "hang", "after", nth=1), WORKER_STALL_SECONDS="5.5"),
        start_with(world, DEAF),
    )
    message_id = await world.send(job="render")

    await until(lambda: _not(is_alive(hung)), 15, "/healthz tells of the hung loop")
    final = await world.final(message_id, 30)

    assert final.worker == other.name
    assert "intake" in (await hung.not_ready())
    assert hung.logged("heartbeat.withheld")
    await all_is_well(world, {message_id: 0})


async def _not(fact: object) -> bool:
    return not await fact  # type: ignore[misc]


async def test_F10_the_death_of_a_loop_is_the_death_of_the_process(world: Fleet) -> None:
    worker = await start_with(world, step("inbox.read", "break", "after"))
    message_id = await world.send(job="render")

    code = await worker.ended(25)
    await world.start()

    assert code == 1
    assert [line["loop"] for line in worker.logged("loop.died")] == ["intake"]
    assert (await world.final(message_id, 30)).verdict == "succeeded"
    await all_is_well(world, {message_id: 0})


@pytest.mark.parametrize("skew_seconds", [-7200, 7200])
async def test_F52_a_host_with_a_wrong_clock_keeps_and_takes_leases_as_the_others_do(
    world: Fleet, skew_seconds: int
) -> None:
    first, second = await asyncio.gather(
        world.start(program=PROGRAM, FAULT_CLOCK_SKEW_SECONDS=str(skew_seconds)),
        world.start(program=PROGRAM, FAULT_PLAN=json.dumps([DEAF])),
    )
    held = await world.holds()
    soon = await world.send(job="render", deadline="2099-01-01T00:00:00Z")
    late = await world.send(job="render", deadline="2001-01-01T00:00:00Z")

    verdicts = {final.id: final.verdict for final in await world.all_final([soon, late], 20)}
    third = await world.start(
        program=PROGRAM, FAULT_PLAN=json.dumps([DEAF]), FAULT_CLOCK_SKEW_SECONDS=str(skew_seconds)
    )
    second.kill()
    taken_from_the_living = await second_look(world, held, first)
    first.kill()
    await world.owned_by_other(held, first.name, 15)
    world.release()
    final = await world.final(held)

    assert verdicts == {soon: "succeeded", late: "expired"}
    assert not taken_from_the_living
    assert final.worker == third.name
    await all_is_well(world, {held: 0, soon: 0, late: None})


async def second_look(world: Fleet, message_id: str, owner: WorkerProcess) -> bool:
    """Whether the message leaves its living owner within more than a lease."""
    await asyncio.sleep(6)
    return await world.owner(message_id) != owner.name


async def test_F45_a_ledger_of_a_newer_worker_is_left_alone_and_an_unknown_message_is_buried(
    world: Fleet,
) -> None:
    await world.redis.xgroup_create(STREAM, "workers", id="0", mkstream=True)
    newer = await world.send(job="render")
    await world.redis.xreadgroup("workers", "newer", {STREAM: ">"})
    key = KEYS.message(MessageKey("requests", newer))
    written = {"v": "2", "state": "received", "owner": "newer", "fence": "1", "what": "nobody here knows"}
    await world.redis.hset(key, mapping=written)
    worker = await world.start()
    unknown = await world.send(job="render", v="2")
    plain = await world.send(job="render")

    finals = {final.id: final for final in await world.all_final([unknown, plain], 20)}
    await asyncio.sleep(6)  # more than a lease: who would take it over would by now

    assert (finals[unknown].verdict, finals[unknown].error_code) == ("rejected", "request.version_unknown")
    assert finals[plain].verdict == "succeeded"
    assert await world.redis.hgetall(key) == {name.encode(): text.encode() for name, text in written.items()}
    assert [
        item["message_id"].decode()
        for item in await world.redis.xpending_range(STREAM, "workers", "-", "+", 9)
    ] == [newer]
    assert worker.running
    assert await world.redis.xlen(KEYS.dead) == 1


async def test_F45_workers_of_two_releases_on_one_group_each_finish_what_is_theirs(world: Fleet) -> None:
    old = await world.start()
    olds = await world.holds()
    new = await world.start(program=PROGRAM, FAULT_LEDGER_VERSION="2")
    sent = [await world.send(job="render") for _ in range(40)]
    await world.all_final(sent, 30)
    by = {final.worker for final in await world.finals()}

    old.kill()
    await asyncio.sleep(7)  # more than a lease: the new one would have taken it by now
    left_alone = await world.owner(olds) == old.name
    await world.start()
    await world.owned_by_other(olds, old.name)
    world.release()
    final = await world.final(olds)

    assert left_alone
    assert by == {old.name, new.name}
    assert (final.verdict, final.worker) == ("succeeded", "w3")
    assert new.running
    await all_is_well(world, dict.fromkeys([olds, *sent], 0))


@pytest.mark.telling
async def test_F22_requests_sent_before_any_worker_ever_ran_are_served(world: Fleet) -> None:
    sent = [await world.send(job="render") for _ in range(5)]

    await world.start()
    await world.all_final(sent, 20)

    await all_is_well(world, dict.fromkeys(sent, 0))


async def test_F49_a_requeued_letter_truly_runs_although_nomad_has_a_job_with_the_old_token(
    world: Fleet,
) -> None:
    await world.start()
    buried = await world.send(job="missing", payload=b"the work", correlation_id="order-9")
    assert (await world.final(buried)).verdict == "rejected"
    world.nomad.register(scripted("missing"))
    old = world.nomad.dispatch("missing", token=buried)

    done = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dlq", "requeue", "--all"),
        env={"PATH": os.environ["PATH"], "REDIS_URL": world.url},
        cwd=ROOT,
    )
    assert await done.wait() == 0
    await until(lambda: _finals_are(world, 2), 20, "the requeued letter is answered")

    (again,) = [final for final in await world.finals() if final.id != buried]
    ((_, request),) = await world.redis.xrange(STREAM, again.id, again.id)
    assert (again.verdict, again.correlation_id) == ("succeeded", "order-9")
    assert again.dispatched_job_id not in {"", old.job_id}
    assert request[b"replay_of"] == f"requests:{buried}".encode()
    assert await world.redis.xlen(KEYS.dead) == 0


async def _finals_are(world: Fleet, number: int) -> bool:
    return len(await world.finals()) == number


async def test_F50_a_flood_in_one_stream_does_not_keep_another_waiting(world: Fleet) -> None:
    settings = {
        "WORKER_STREAMS": "high:6,low:1",
        "WORKER_TOKEN_TEMPLATE": "{stream}:{message_id}",
        "WORKER_MAX_IN_FLIGHT": "40",
    }
    pipeline = world.redis.pipeline(transaction=False)
    for _ in range(4_000):
        pipeline.xadd(KEYS.stream("low"), {"job": "render"})
    await pipeline.execute()
    await world.start(**settings)  # type: ignore[arg-type]
    await until(lambda: _some_finals(world, 100), 30, "the flood is being worked off")

    waits = []
    for _ in range(5):
        message_id = (await world.redis.xadd(KEYS.stream("high"), {"job": "render"})).decode()
        waits.append(await world.reply_of(message_id, "dispatched", 30))

    groups = await world.redis.xinfo_groups(KEYS.stream("low"))
    assert groups[0]["lag"] > 1_000
    assert max(waits) < 5


async def test_F50_a_tenants_flood_in_the_same_stream_keeps_no_other_tenant_waiting(world: Fleet) -> None:
    settings = limited(world, '[limits]\ncap = 10\n[limits.tenants."*"]\nweight = 1\n')
    await asyncio.gather(world.start(**settings), world.start(**settings))
    pipeline = world.redis.pipeline(transaction=False)
    for _ in range(4_000):
        pipeline.xadd(STREAM, {"job": "render", "tenant": "flood", "meta": '{"run_for": "1s"}'})
    await pipeline.execute()
    # What lies before it in the stream has to be read and put into the queue, no more.
    behind = await world.send(job="render", tenant="small")
    behind_seconds = await world.reply_of(behind, "dispatched", 60)
    still_queued = await world.redis.zcard(KEYS.queue("requests"))

    waits = []
    for number in range(5):
        message_id = await world.send(job="render", tenant=f"other-{number}")
        waits.append(await world.reply_of(message_id, "dispatched", 30))

    assert still_queued > 3_000
    assert behind_seconds < 60
    assert max(waits) < 5
    assert max(await _slots_taken(world, 20)) == 10


async def _slots_taken(world: Fleet, looks: int) -> list[int]:
    found = []
    for _ in range(looks):
        found.append(await world.redis.zcard(KEYS.cap("total")))
        await asyncio.sleep(0.05)
    return found


async def _some_finals(world: Fleet, number: int) -> bool:
    return len(await world.finals()) >= number


async def test_F51_the_slots_of_a_dead_worker_are_free_again_with_its_lease(world: Fleet) -> None:
    # Slots are per process and counted from what is in hand, so that there is nothing to leak.
    first = await world.start(WORKER_MAX_IN_FLIGHT="3")
    held = [await world.holds() for _ in range(3)]
    waiting = await world.send(job="render")
    await asyncio.sleep(1)
    unread = (await world.redis.xinfo_groups(STREAM))[0]["lag"]
    second = await world.start(WORKER_MAX_IN_FLIGHT="3")
    await world.final(waiting)

    first.kill()
    for message_id in held:
        await world.owned_by_other(message_id, first.name)
    await until(lambda: _in_flight(second, 3), 10, "the second has all three in hand")
    world.release()
    await world.all_final(held, 20)
    after = [await world.send(job="render") for _ in range(6)]
    await world.all_final(after, 20)

    assert unread == 1
    assert await _in_flight(second, 0)
    await all_is_well(world, dict.fromkeys([*held, waiting, *after], 0))


async def test_F51_a_slot_of_a_cap_goes_with_its_message_to_who_takes_it_over(world: Fleet) -> None:
    settings = limited(world, "[limits]\ncap = 2\n")
    first = await world.start(**settings)
    held = [await world.holds() for _ in range(2)]
    waiting = [await world.send(job="render") for _ in range(4)]
    await world.start(**settings)

    first.kill()
    for message_id in held:
        await world.owned_by_other(message_id, first.name)
    # Their jobs run on: no slot of theirs may be anyone else's meanwhile.
    while_they_run = len(world.dispatched())
    # A slot without its message, as a failover might leave one behind, would be lost for ever.
    await world.redis.zadd(KEYS.cap("total"), {f"\t{KEYS.message(MessageKey('requests', '1-1'))}": 0})
    world.release()
    await world.all_final([*held, *waiting], 40)

    assert while_they_run == 2
    await until(lambda: _no_slots(world), 90, "the lost slot is counted out")
    await all_is_well(world, dict.fromkeys([*held, *waiting], 0))


async def _no_slots(world: Fleet) -> bool:
    return bool(await world.redis.zcard(KEYS.cap("total")) == 0)


async def _in_flight(worker: WorkerProcess, number: int) -> bool:
    return await worker.metric("jobs_in_flight") == number


async def test_F54_a_worker_whose_port_is_taken_works_all_the_same(world: Fleet) -> None:
    first = await world.start()
    second = await world.start(WORKER_HTTP_ADDR=first.http.removeprefix("http://"))
    await until(lambda: _logged(second, "http.port_unavailable"), 20, "it tells that its port is taken")
    first.terminate()
    await first.ended(20)

    message_id = await world.send(job="render")
    final = await world.final(message_id)

    assert final.worker == second.name
    await until(lambda: _serves(second), 40, "it serves once the port is free")


async def _logged(worker: WorkerProcess, event: str) -> bool:
    return bool(worker.logged(event))


async def _serves(worker: WorkerProcess) -> bool:
    return bool(worker.logged("http.listening"))


async def test_F54_scrapes_during_an_outage_answer_at_once_and_show_nothing_old(world: Fleet) -> None:
    worker = await world.start()
    held = await world.holds()
    before = (await worker.get("/metrics")).text

    await world.server.save()
    await world.server.stop()
    during = (await worker.get("/metrics")).text
    await world.server.start()
    world.release()
    await world.final(held)

    shown = 'dispatch_worker_stream_pending_entries{stream="requests"}'
    assert shown in before
    assert shown not in during
    assert "dispatch_worker_workers_alive NaN" in during
