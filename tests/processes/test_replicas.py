"""Replicas that are killed, paused and stopped while messages and jobs are under way."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes.fleet import Fleet, fleet, until
from tests.processes.jobs import held, scripted

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ADOPTION_SECONDS = 15.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, [scripted("render"), held("held")]) as made:
        yield made


async def test_the_token_nomad_receives_is_the_message_id(world: Fleet) -> None:
    await world.start()

    message_id = await world.send(job="render")
    final = await world.final(message_id)

    assert world.children_by_token() == {message_id: 1}
    assert (final.verdict, final.exit_code) == ("succeeded", 0)


async def test_a_running_job_of_a_killed_worker_is_adopted_in_seconds(world: Fleet) -> None:
    first = await world.start()
    message_id = await world.holds()
    await world.start()

    first.kill()
    took = await world.owned_by_other(message_id, "w1", ADOPTION_SECONDS)

    world.release(exit_code=7)
    final = await world.final(message_id)
    assert (final.verdict, final.exit_code, final.worker) == ("failed", 7, "w2")
    assert took <= ADOPTION_SECONDS
    assert world.children_by_token() == {message_id: 1}
    assert [reply.seq for reply in await world.replies()] == list(range(1, final.seq + 1))
    assert await world.pending() == 0


async def test_a_worker_told_to_stop_hands_over_within_seconds_and_exits_cleanly(world: Fleet) -> None:
    first = await world.start()
    message_id = await world.holds()
    await world.start()

    first.terminate()
    code = await first.ended(20)
    took = await world.owned_by_other(message_id, "w1", ADOPTION_SECONDS)

    assert code == 0
    assert took < 6
    world.release()
    assert (await world.final(message_id)).verdict == "succeeded"


async def test_a_paused_worker_that_wakes_up_publishes_nothing_twice(world: Fleet) -> None:
    sleeper = await world.start()
    message_id = await world.holds()
    await world.start()
    sleeper.pause()
    await world.owned_by_other(message_id, "w1", ADOPTION_SECONDS)
    world.release()
    await world.final(message_id)

    sleeper.resume()
    again = await world.send(job="render")
    await world.final(again)
    sleeper.terminate()
    assert await sleeper.ended(20) == 0

    finals = await world.finals()
    assert sorted(final.id for final in finals) == sorted([message_id, again])
    assert {final.verdict for final in finals} == {"succeeded"}


async def test_a_message_read_by_a_worker_that_is_killed_at_once_is_dispatched_once(world: Fleet) -> None:
    # Nomad does not answer while the first worker tries, so it is killed with its request under way.
    world.nomad.faults.delay("dispatch", seconds=30)
    first = await world.start()
    message_id = await world.send(job="render")
    await until(lambda: _owned(world, message_id), 10, "the message is owned")
    first.kill()
    world.nomad.faults.clear()

    await world.start()
    final = await world.final(message_id, 40)

    assert final.verdict == "succeeded"
    assert world.children_by_token() == {message_id: 1}


async def test_a_thousand_mixed_messages_survive_a_kill_and_a_stop(world: Fleet) -> None:
    chance = random.Random(7)
    killed, stopped, _ = [await world.start(WORKER_MAX_IN_FLIGHT="200") for _ in range(3)]
    expected: dict[str, tuple[str, int | None]] = {}
    pipeline = world.redis.pipeline(transaction=False)
    kinds = []
    for _ in range(1_000):
        kind = chance.choices(["good", "bad", "unknown", "poison"], [85, 9, 3, 3])[0]
        kinds.append(kind)
        meta = {"run_for": f"{chance.randrange(50, 3_000)}ms", "exit_code": "3" if kind == "bad" else "0"}
        fields: dict[str | bytes, str | bytes] = {"job": "render", "meta": json.dumps(meta)}
        if kind == "unknown":
            fields["job"] = "nowhere"
        if kind == "poison":
            fields = {b"\xff": b"\x00", b"meta": b"{"}
        pipeline.xadd("{dispatch}:requests", fields)
    outcomes = {
        "good": ("succeeded", 0),
        "bad": ("failed", 3),
        "unknown": ("rejected", None),
        "poison": ("rejected", None),
    }
    for entry_id, kind in zip(await pipeline.execute(), kinds, strict=True):
        expected[entry_id.decode()] = outcomes[kind]

    await until(lambda: _finals_at_least(world, 150), 60, "150 finals")
    killed.kill()
    await until(lambda: _finals_at_least(world, 350), 60, "350 finals")
    stopped.terminate()
    assert await stopped.ended(25) == 0
    finals = await world.all_final(list(expected), 120)

    assert {final.id: (final.verdict, final.exit_code) for final in finals} == expected
    assert len(await world.finals()) == 1_000
    dispatched = [message_id for message_id, (verdict, _) in expected.items() if verdict != "rejected"]
    assert world.children_by_token() == dict.fromkeys(dispatched, 1)
    assert await world.pending() == 0
    assert await world.redis.xlen("{dispatch}:dead") == kinds.count("unknown") + kinds.count("poison")


async def _owned(world: Fleet, message_id: str) -> bool:
    return bool(await world.owner(message_id))


async def _finals_at_least(world: Fleet, number: int) -> bool:
    await asyncio.sleep(0.2)
    return len(await world.finals()) >= number
