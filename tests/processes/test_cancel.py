"""Cancelling with real workers: before the dispatch, during the run, after the end, and while workers die."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes.fleet import Fleet, fleet, until
from tests.processes.jobs import held, scripted
from worker.client import Cancelled, DispatchClient, RedisOptions
from worker.core.instants import format_rfc3339

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

FAR_MS = 4_000_000_000_000
REACTION_SECONDS = 5.0
"""The promise is about a second; this bound allows for a machine that others use too."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, [scripted("render"), held("held")]) as made:
        yield made


async def cancel(world: Fleet, message_id: str) -> Cancelled:
    async with DispatchClient(RedisOptions(world.server.url)) as client:
        return await client.cancel("requests", message_id)


async def test_a_request_cancelled_while_no_worker_is_up_is_answered_and_never_dispatched(
    world: Fleet,
) -> None:
    message_id = await world.send(job="render")
    assert await cancel(world, message_id) is Cancelled.PREVENTED

    await world.start()
    final = await world.final(message_id)

    assert (final.verdict, final.error_code) == ("cancelled", "request.cancelled")
    assert world.dispatched() == []
    assert await world.pending() == 0


async def test_a_request_that_waits_for_its_time_is_cancelled_at_once(world: Fleet) -> None:
    await world.start()
    message_id = await world.send(job="render", not_before=format_rfc3339(FAR_MS))
    await world.reply_of(message_id, "accepted")

    assert await cancel(world, message_id) is Cancelled.PREVENTED
    final = await world.final(message_id, REACTION_SECONDS)

    assert final.verdict == "cancelled"
    assert world.dispatched() == []


async def test_a_running_job_is_stopped(world: Fleet) -> None:
    await world.start()
    message_id = await world.holds()

    assert await cancel(world, message_id) is Cancelled.ORDERED
    assert await cancel(world, message_id) is Cancelled.ORDERED
    final = await world.final(message_id, 15)

    assert (final.verdict, final.error_code) == ("cancelled", "job.cancelled")
    assert final.data["job"]["stop"]
    assert [reply.id for reply in await world.finals()] == [message_id]


async def test_an_ended_request_keeps_its_result(world: Fleet) -> None:
    await world.start()
    message_id = await world.send(job="render")
    await world.final(message_id)

    assert await cancel(world, message_id) is Cancelled.TOO_LATE

    assert [reply.verdict for reply in await world.finals()] == ["succeeded"]


async def test_an_order_is_carried_out_by_whoever_takes_over(world: Fleet) -> None:
    first = await world.start()
    message_id = await world.holds()
    first.pause()
    assert await cancel(world, message_id) is Cancelled.ORDERED
    first.kill()
    first.resume()

    await world.start()
    final = await world.final(message_id, 40)

    assert (final.verdict, final.worker) == ("cancelled", "w2")


async def test_a_request_cancelled_while_its_dispatch_is_under_way_leaves_no_job_behind(world: Fleet) -> None:
    world.nomad.faults.delay("dispatch", seconds=2)
    await world.start()
    message_id = await world.send(job="held", meta=json.dumps({"file": str(world.folder / "never")}))
    await until(lambda: _dispatching(world, message_id), 10, "the dispatch is under way")

    assert await cancel(world, message_id) is Cancelled.ORDERED
    final = await world.final(message_id, 30)

    assert final.verdict == "cancelled"
    assert final.data["job"]["stop"]


async def test_a_missed_wake_up_is_made_good(world: Fleet) -> None:
    await world.start()
    message_id = await world.holds()
    # What the producer's script writes, without the wake-up.
    ledger = f"{{dispatch}}:message:requests:{message_id}"
    await world.redis.hset(ledger, "cancel", "1")
    await world.redis.zadd("{dispatch}:cancels", {ledger: 1})

    final = await world.final(message_id, 25)

    assert final.verdict == "cancelled"


async def _dispatching(world: Fleet, message_id: str) -> bool:
    state = await world.redis.hget(f"{{dispatch}}:message:requests:{message_id}", "state")
    return bool(state == b"dispatching")
