"""Redis goes away, comes back empty, fills up, forgets the group, or stops answering."""

import asyncio
import json
import time
from typing import Any

import pytest

from tests.faults.checker import all_is_well
from tests.faults.planned import DEAF, start_with, step
from tests.faults.proxy import proxied
from tests.processes.fleet import KEYS, STREAM, Fleet, WorkerProcess, until
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.core.instants import format_rfc3339
from worker.core.model import MessageKey
from worker.errors import WorkerError

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

LEASE_SECONDS = 5.0
"""As in `conftest.QUICK`."""


async def ledger(world: Fleet, message_id: str, field: str) -> str:
    value = await world.redis.hget(KEYS.message(MessageKey("requests", message_id)), field)
    return value.decode() if value else ""


async def is_unready(worker: WorkerProcess, reason: str) -> bool:
    return reason in await worker.not_ready()


async def is_ready(worker: WorkerProcess) -> bool:
    return not await worker.not_ready()


async def test_F11_c16_after_an_outage_longer_than_every_lease_all_goes_on_with_the_same_owners(
    world: Fleet,
) -> None:
    first, second = await asyncio.gather(world.start(), world.start())
    held = await asyncio.gather(*(world.holds() for _ in range(6)))
    owners = {message_id: await world.owner(message_id) for message_id in held}

    await world.server.save()
    await world.server.stop()
    await until(lambda: is_unready(first, "redis"), 15, "the first notices")
    await until(lambda: is_unready(second, "redis"), 15, "the second notices")
    await asyncio.sleep(LEASE_SECONDS)  # the leases are over on every clock
    await world.server.start()
    took = await until(lambda: is_ready(first), 20, "the first is ready again")
    await until(lambda: is_ready(second), 20, "the second is ready again")
    new = await world.send(job="render")
    await world.final(new)
    await asyncio.sleep(LEASE_SECONDS)  # whoever would take over wrongly would by now
    still = {message_id: await world.owner(message_id) for message_id in held}
    world.release()
    await world.all_final(list(held), 30)

    assert still == owners
    assert {await ledger(world, message_id, "takeovers") for message_id in held} <= {"", "0"}
    assert took < 10
    for worker in (first, second):
        assert await worker.metric("takeovers_total") == 0
        # A hot loop would have tried thousands of times.
        assert 0 < await worker.metric("redis_errors_total") < 400
    await all_is_well(world, dict.fromkeys([*held, new], 0))


@pytest.mark.telling
async def test_F12_c21_after_flushall_what_runs_is_answered_and_new_requests_are_served(world: Fleet) -> None:
    worker = await world.start()
    held = await world.holds()

    await world.redis.flushall()
    await until(lambda: _group_is_back(world), 15, "the group is there again")
    new = await world.send(job="render")
    await world.final(new)
    world.release(exit_code=4)
    final = await world.final(held)

    assert (final.verdict, final.exit_code) == ("failed", 4)
    assert len([reply for reply in await world.finals() if reply.id == held]) == 1
    assert await worker.metric("step_retries_total", code="redis.group_missing") >= 1
    assert worker.logged("intake.group_missing")
    assert len(world.dispatched()) == 2
    assert await ledger(world, held, "state") == "settled"


async def _group_is_back(world: Fleet) -> bool:
    if not await world.redis.exists(STREAM):
        return False
    return any(group["name"] == b"workers" for group in await world.redis.xinfo_groups(STREAM))


async def test_F12_an_evicted_ledger_entry_is_made_again_from_the_job_that_nomad_has(world: Fleet) -> None:
    first, _ = await asyncio.gather(world.start(), start_with(world, DEAF))
    held = await world.holds()

    await world.redis.delete(KEYS.message(MessageKey("requests", held)))
    first.kill()
    await world.owned_by_other(held, first.name)
    await until(lambda: _state(world, held, "running"), 20, "it runs on record again")
    world.release()
    final = await world.final(held)

    assert final.verdict == "succeeded"
    assert world.children_by_token() == {held: 1}
    assert await world.pending() == 0


async def _state(world: Fleet, message_id: str, state: str) -> bool:
    return await ledger(world, message_id, "state") == state


async def test_F12_c22_a_destroyed_group_is_made_again_and_nothing_runs_twice(world: Fleet) -> None:
    first, second = await asyncio.gather(world.start(), world.start())
    held = list(await asyncio.gather(*(world.holds() for _ in range(4))))
    done = [await world.send(job="render") for _ in range(10)]
    await world.all_final(done, 20)
    owners = {message_id: await world.owner(message_id) for message_id in held}

    await world.redis.xgroup_destroy(STREAM, "workers")
    new = await world.send(job="render")
    await world.final(new)
    world.release()
    await world.all_final(held, 20)
    await until(lambda: _nothing_pending(world), 20, "nothing is pending")

    assert set(owners.values()) <= {first.name, second.name}
    await all_is_well(world, dict.fromkeys([*held, *done, new], 0))


async def _nothing_pending(world: Fleet) -> bool:
    return await world.pending() == 0


async def test_F12_a_server_that_comes_back_empty_is_served_without_a_restart(world: Fleet) -> None:
    worker = await world.start()
    held = await world.holds()

    await world.server.restart(keep_data=False)
    await until(lambda: _group_is_back(world), 20, "the group is there again")
    await until(lambda: is_ready(worker), 20, "the worker is ready again")
    new = await world.send(job="render")
    await world.final(new)
    world.release()
    final = await world.final(held)

    assert final.verdict == "succeeded"
    assert len(await world.finals()) == 2
    assert world.children_by_token() == {held: 1, new: 1}


@pytest.mark.parametrize("fault", ["half_open", "black_hole"])
async def test_F14_a_connection_that_went_dead_without_a_word_is_given_up(world: Fleet, fault: str) -> None:
    async with proxied(world.server.port) as network:
        world.url = f"redis://127.0.0.1:{network.port}/0"
        worker = await world.start()
        held = await world.holds()

        if fault == "half_open":
            assert network.half_open() > 0
        else:
            network.swallow = True
            await until(lambda: is_unready(worker, "redis"), 15, "it notices that Redis does not answer")
            network.swallow = False
            network.cut()
        message_id = await world.send(job="render")
        # BLOCK 0.5 s and 4 s of slack for the reader, and its backoff.
        took = await world.reply_of(message_id, "result", 20)
        world.release()
        await world.final(held)

        assert took < 12
        await until(lambda: is_ready(worker), 10, "it is ready again")
        await all_is_well(world, {held: 0, message_id: 0})


async def test_F14_c15_a_worker_cut_off_from_redis_alone_stops_dispatching_and_is_replaced(
    world: Fleet,
) -> None:
    async with proxied(world.server.port) as network:
        direct, world.url = world.url, f"redis://127.0.0.1:{network.port}/0"
        lonely = await start_with(world, step("ledger.keep:Intended", "hang", "after", nth=2))
        held = await world.holds()
        world.url = direct
        other = await start_with(world, DEAF)

        network.swallow = True
        await world.owned_by_other(held, lonely.name)
        world.release()
        final = await world.final(held)
        network.swallow = False
        network.cut()
        await until(lambda: is_ready(lonely), 20, "the cut-off worker is back")
        await until(lambda: _holds_nothing(lonely), 20, "it has let go of what it lost")

        assert final.worker == other.name
        await all_is_well(world, {held: 0})


async def _holds_nothing(worker: WorkerProcess) -> bool:
    return await worker.metric("jobs_in_flight") == 0


@pytest.mark.parametrize("fault", ["maxmemory", "noreplicas", "readonly"])
async def test_F15_c27_c28_a_redis_that_refuses_writes_delays_finals_and_loses_none(
    world: Fleet, fault: str
) -> None:
    worker = await world.start()
    held = await world.holds()
    refuse, relent, code = {
        "maxmemory": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "redis.out_of_memory"),
        "noreplicas": (
            "CONFIG SET min-replicas-to-write 1",
            "CONFIG SET min-replicas-to-write 0",
            "redis.not_writable",
        ),
        # Of a primary that is not there: it keeps its data, and takes no writes.
        "readonly": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "redis.not_writable"),
    }[fault]

    await world.redis.execute_command(*refuse.split())
    world.release()
    await until(lambda: _retried(worker, code), 15, "the refused write is counted by its name")
    await until(lambda: is_unready(worker, "redis"), 15, "it says that it is not ready")
    before = len(await world.finals())
    await world.redis.execute_command(*relent.split())
    final = await world.final(held)

    assert before == 0
    assert final.verdict == "succeeded"
    await until(lambda: is_ready(worker), 15, "it is ready again")
    new = await world.send(job="render")
    await world.final(new)
    await all_is_well(world, {held: 0, new: 0})


async def _retried(worker: WorkerProcess, code: str) -> bool:
    return await worker.metric("step_retries_total", code=code) > 0


async def test_F15_an_entry_read_while_no_intent_can_be_written_is_not_dispatched(world: Fleet) -> None:
    worker = await world.start()
    # So soon that it is waited for in hand.
    soon = format_rfc3339(round(time.time() * 1000) + 1_900)
    message_id = await world.send(job="render", not_before=soon)
    await world.reply_of(message_id, "accepted")
    await world.redis.config_set("min-replicas-to-write", "1")
    await until(lambda: is_unready(worker, "redis"), 15, "it says that it is not ready")

    assert world.dispatched() == []
    assert (await worker.get("/healthz")).is_success


async def test_F16_a_redis_that_may_evict_is_warned_about_loudly(world: Fleet) -> None:
    await world.redis.config_set("maxmemory", str(512 * 1024 * 1024))
    await world.redis.config_set("maxmemory-policy", "allkeys-lru")

    worker = await world.start()

    warnings = [line["warning"] for line in worker.logged("redis.unsuitable")]
    assert any("allkeys-lru" in warning and "noeviction" in warning for warning in warnings)


async def test_F17_a_command_cancelled_midway_never_gives_its_answer_to_another(world: Fleet) -> None:
    async with proxied(world.server.port) as network:
        network.delay_seconds = 0.002
        client: Any = connect(RedisOptions(f"redis://127.0.0.1:{network.port}/0"), Purpose.OPS)
        wrong = []

        async def ask(number: int) -> None:
            text = f"answer {number}"
            if await client.execute_command("ECHO", text) != text.encode():
                wrong.append(text)

        for number in range(400):
            asked = asyncio.create_task(ask(number))
            await asyncio.sleep((number % 7) * 0.001)
            if number % 2:
                asked.cancel()
            await asyncio.wait([asked])
        await client.aclose()

        assert wrong == []


async def test_F21_c23_entries_trimmed_while_pending_are_answered_all_the_same(world: Fleet) -> None:
    first, _ = await asyncio.gather(
        start_with(world, step("ledger.keep:JobAccepted", "break", "before", nth=3)), start_with(world, DEAF)
    )
    running = await world.holds()
    later = await world.send(job="render", not_before="2099-01-01T00:00:00Z")
    await world.reply_of(later, "accepted")

    await world.redis.xtrim(STREAM, maxlen=0, approximate=False)
    first.kill()
    # It waits for its time; housekeeping finds out that it waits in vain.
    final = await world.final(later, 90)
    world.release()
    assert (await world.final(running)).verdict == "succeeded"

    assert (final.verdict, final.error_code) == ("payload_lost", "request.payload_lost")
    assert world.children_by_token() == {running: 1}
    assert await world.redis.xlen(KEYS.dead) == 1
    await all_is_well(world, {running: 0, later: None})


async def test_F21_hundreds_of_trimmed_messages_are_all_adopted_in_time(world: Fleet) -> None:
    first, second = await asyncio.gather(world.start(), start_with(world, DEAF))
    meta = json.dumps({"run_for": "25s"})
    sent = [await world.send(job="render", meta=meta) for _ in range(250)]
    await until(lambda: _dispatched(world, 250), 40, "all are dispatched")

    await world.redis.xtrim(STREAM, maxlen=0, approximate=False)
    first.kill()
    await until(lambda: _taken(second, 250), 15, "all 250 are adopted")
    await world.all_final(sent, 60)

    await all_is_well(world, dict.fromkeys(sent, 0))


async def _dispatched(world: Fleet, number: int) -> bool:
    return len([reply for reply in await world.replies() if reply.type == "running"]) == number


async def _taken(worker: WorkerProcess, number: int) -> bool:
    return await worker.metric("takeovers_total") >= number


async def test_F46_a_reply_stream_that_is_none_holds_up_its_own_message_only(world: Fleet) -> None:
    worker = await world.start()
    await world.redis.set(KEYS.reply_stream("mine"), "not a stream")
    stuck = await world.send(job="render", reply_to="mine")
    others = [await world.send(job="render") for _ in range(5)]
    await world.all_final(others, 20)
    await until(lambda: _has_retried(worker), 10, "the refused reply is retried and logged")

    await world.redis.delete(KEYS.reply_stream("mine"))
    await until(lambda: _settled(world, stuck), 20, "it is settled")

    finals = [fields for _, fields in await world.redis.xrange(KEYS.reply_stream("mine"))]
    assert [fields[b"type"] for fields in finals].count(b"result") == 1
    assert len(await world.finals()) == 5


async def _has_retried(worker: WorkerProcess) -> bool:
    return any("WRONGTYPE" in line["error"] for line in worker.logged("step.retried"))


async def _settled(world: Fleet, message_id: str) -> bool:
    return await ledger(world, message_id, "state") == "settled"


@pytest.mark.slow
async def test_F23_a_hundred_thousand_pending_entries_are_taken_without_stopping_redis(world: Fleet) -> None:
    count = 100_000
    await world.redis.xgroup_create(STREAM, "workers", id="0", mkstream=True)
    for _ in range(count // 1_000):
        pipeline = world.redis.pipeline(transaction=False)
        for _ in range(1_000):
            pipeline.xadd(STREAM, {"job": "nowhere"})
        await pipeline.execute()
        await world.redis.xreadgroup("workers", "dead", {STREAM: ">"}, count=1_000)
    waits: list[float] = []
    worker = await world.start(wait=False)

    async def all_taken() -> bool:
        started = asyncio.get_running_loop().time()
        await world.redis.ping()
        waits.append(asyncio.get_running_loop().time() - started)
        if len(waits) % 50:
            return False
        return bool(await world.redis.xlen(KEYS.dead) == count)

    await until(all_taken, 420, "all are taken over and answered")

    waits.sort()
    assert waits[int(len(waits) * 0.99)] < 0.25
    assert await world.pending() == 0
    assert (await worker.get("/healthz")).is_success


async def test_F18_an_idle_stream_gives_no_errors(world: Fleet) -> None:
    # Longer than any socket timeout there is, the reader's included.
    worker = await world.start()
    await asyncio.sleep(6)

    assert await worker.metric("redis_errors_total") == 0
    assert await worker.metric("step_retries_total") == 0
    with pytest.raises(WorkerError):
        await _read_with_a_short_timeout(world)


async def _read_with_a_short_timeout(world: Fleet) -> None:
    """The mistake that the settings make impossible, to show that this test could see it."""
    from worker.adapters.redis.connection import FAILURES, translate  # noqa: PLC0415

    reader: Any = connect(RedisOptions(world.url), Purpose.OPS)
    try:
        await reader.xreadgroup("workers", "short", {STREAM: ">"}, block=20_000)
    except FAILURES as error:
        raise translate(error) from error
    finally:
        await reader.aclose()
