"""A worker is killed at every step of a message's way, exactly there; another one finishes what it left."""

import asyncio
import json
import signal
from itertools import pairwise

import pytest

from tests.faults.checker import all_is_well
from tests.faults.planned import DEAF, start_with, step
from tests.faults.proxy import proxied
from tests.processes.fleet import KEYS, STREAM, Fleet, WorkerProcess, until
from worker.core.model import MessageKey

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ADOPTION_SECONDS = 15.0

CRASHES = {
    "F01_c01_read_and_not_admitted": step("inbox.read", "kill", "after"),
    "F01_c03_admitted_and_not_intended": step("ledger.admit", "kill", "after"),
    "F01_c03_about_to_intend": step("ledger.keep:Intended", "kill", "before"),
    "F02_c04_intended_and_not_sent": step("nomad.dispatch", "kill", "before"),
    "F02_c05_sent_and_not_recorded": step("nomad.dispatch", "kill", "after"),
    "F02_c05_about_to_record": step("ledger.keep:JobAccepted", "kill", "before"),
    "F03_c07_recorded_and_not_watched": step("ledger.keep:JobAccepted", "kill", "after"),
    "F03_c08_while_it_runs": step("ledger.keep:Progressed", "kill", "after", nth=2),
    "F04_c10_about_to_settle": step("ledger.settle", "kill", "before"),
    "F04_c12_settled": step("ledger.settle", "kill", "after"),
}
TELLING = {"F01_c01_read_and_not_admitted", "F02_c05_sent_and_not_recorded", "F04_c12_settled"}
"""Caused in every run of the tests."""


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param(crash, id=name, marks=[pytest.mark.telling] if name in TELLING else [])
        for name, crash in CRASHES.items()
    ],
)
async def test_a_worker_killed_at_a_step(world: Fleet, crash: dict[str, object]) -> None:
    first, _ = await asyncio.gather(start_with(world, crash), start_with(world, DEAF))
    message_id = await world.send(job="render", meta=json.dumps({"run_for": "700ms"}))
    assert await first.ended(15) == -signal.SIGKILL

    final = await world.final(message_id, 40)

    assert (final.verdict, final.exit_code, final.attempt) == ("succeeded", 0, 1)
    assert len(world.dispatched()) == 1
    await all_is_well(world, {message_id: 0})


async def test_F03_every_message_of_a_killed_worker_is_adopted_within_15_s(patient_world: Fleet) -> None:
    world = patient_world
    first = await world.start()
    held = await world.holds()
    await world.start()

    first.kill()
    took = await world.owned_by_other(held, first.name, ADOPTION_SECONDS)

    world.release()
    await world.final(held)
    assert took <= ADOPTION_SECONDS
    await all_is_well(world, {held: 0})


@pytest.mark.telling
async def test_c02_a_lost_answer_of_a_read_is_found_by_reconciling(world: Fleet) -> None:
    async with proxied(world.server.port) as network:
        world.url = f"redis://127.0.0.1:{network.port}/0"
        worker = await world.start()
        network.reset_on_answer = b"the marker"

        message_id = await world.send(job="render", payload=b"the marker")
        final = await world.final(message_id)

        assert network.resets == 1
        assert final.verdict == "succeeded"
        assert await worker.metric("redeliveries_total", reason="reconciled") == 1
        await all_is_well(world, {message_id: 0})


@pytest.mark.telling
async def test_c06_F26_a_dispatch_that_nomad_answers_too_late_makes_one_job(world: Fleet) -> None:
    world.nomad.faults.events_before_answers(2.5, times=1)
    await world.start()

    message_id = await world.send(job="render")
    final = await world.final(message_id)

    assert final.verdict == "succeeded"
    await all_is_well(world, {message_id: 0})


@pytest.mark.telling
async def test_c11_a_settlement_whose_answer_was_lost_is_not_repeated(world: Fleet) -> None:
    worker = await start_with(world, step("ledger.settle", "lose", "after"))

    message_id = await world.send(job="render")
    await world.final(message_id)
    await until(lambda: _logged(worker, "message.settled"), 10, "the worker has settled the message")

    await all_is_well(world, {message_id: 0})


async def _logged(worker: WorkerProcess, event: str) -> bool:
    return bool(worker.logged(event))


@pytest.mark.telling
async def test_F06_c13_a_worker_paused_past_its_lease_settles_nothing(world: Fleet) -> None:
    sleeper, taker = await asyncio.gather(
        start_with(world, step("ledger.settle", "pause", "before")), start_with(world, DEAF)
    )
    message_id = await world.send(job="render")
    await until(lambda: _is_paused(sleeper), 15, "it is paused right before it settles")
    await world.final(message_id)

    sleeper.resume()
    await until(lambda: _let_go(sleeper), 10, "it has let go of the message")

    assert (await world.finals())[0].worker == taker.name
    await all_is_well(world, {message_id: 0})


async def test_F06_c13_of_two_workers_about_to_settle_only_the_owner_does(world: Fleet) -> None:
    pause = step("ledger.settle", "pause", "before")
    former, owner = await asyncio.gather(start_with(world, pause), start_with(world, DEAF, pause))
    message_id = await world.send(job="render")
    await until(lambda: _is_paused(former), 15, "the first is paused right before it settles")
    await until(lambda: _is_paused(owner), 30, "and so is who took the message over")

    former.resume()
    await until(lambda: _let_go(former), 10, "the first has let go of the message")
    before = await world.finals()
    owner.resume()
    await world.final(message_id)

    assert before == []
    assert [line["code"] for line in former.logged("message.let_go")] == ["ledger.fenced"]
    await all_is_well(world, {message_id: 0})


async def _is_paused(worker: WorkerProcess) -> bool:
    return worker.paused


async def _let_go(worker: WorkerProcess) -> bool:
    return await worker.metric("jobs_in_flight") == 0


async def test_F06_c14_a_dispatch_sent_by_a_worker_that_slept_too_long_makes_no_second_job(
    world: Fleet,
) -> None:
    sleeper, taker = await asyncio.gather(
        start_with(world, step("nomad.dispatch", "pause", "before")), start_with(world, DEAF)
    )
    message_id = await world.send(job="render", meta=json.dumps({"run_for": "8s"}))
    await until(lambda: _is_paused(sleeper), 15, "it is paused right before it sends")
    await world.reply_of(message_id, "running", 30)

    sleeper.resume()
    final = await world.final(message_id)

    assert (final.verdict, final.worker) == ("succeeded", taker.name)
    await all_is_well(world, {message_id: 0})


async def test_F27_c14_of_two_jobs_for_one_message_the_later_one_is_stopped_and_counted(world: Fleet) -> None:
    # A Nomad that does not know the token makes the second job that its own check would have prevented.
    late = [step("nomad.dispatch", "pause", "before"), step("nomad.dispatch", "forget_token")]
    sleeper, taker = await asyncio.gather(start_with(world, *late), start_with(world, DEAF))
    message_id = await world.send(job="render", meta=json.dumps({"run_for": "9s"}))
    await until(lambda: _is_paused(sleeper), 15, "it is paused right before it sends")
    await world.reply_of(message_id, "running", 30)

    sleeper.resume()
    await until(lambda: _two_jobs(world), 15, "both jobs exist")
    kept, extra = world.dispatched()
    await until(lambda: _is_stopped(world, extra["job_id"]), 15, "the later job is stopped")
    final = await world.final(message_id)

    assert (final.verdict, final.dispatched_job_id, final.worker) == ("succeeded", kept["job_id"], taker.name)
    assert not world.nomad.job(kept["job_id"]).stop
    assert await sleeper.metric("duplicate_children_stopped_total") == 1
    assert sleeper.logged("job.duplicate_stopped")
    assert len(await world.finals()) == 1


async def _two_jobs(world: Fleet) -> bool:
    return len(world.dispatched()) == 2


async def _is_stopped(world: Fleet, job_id: str) -> bool:
    return world.nomad.job(job_id).stop


async def test_F05_c09_a_job_collected_while_every_worker_was_down_is_never_run_again(world: Fleet) -> None:
    first = await world.start()
    message_id = await world.holds()
    first.kill()
    await first.ended(5)
    world.release()
    await until(lambda: _is_dead(world), 10, "the job has ended")
    world.nomad.collect_garbage()

    await world.start()
    final = await world.final(message_id)

    assert (final.verdict, final.error_code != "") == ("unknown_gc", True)
    assert len(world.dispatched()) == 1
    assert [fields[b"dead_verdict"] for _, fields in await world.redis.xrange(KEYS.dead)] == [b"unknown_gc"]
    await all_is_well(world, {message_id: 0})


async def _is_dead(world: Fleet) -> bool:
    return world.nomad.job(world.dispatched()[0]["job_id"]).status == "dead"


async def test_F07_c29_two_replicas_that_find_the_same_dead_worker_share_what_it_held(world: Fleet) -> None:
    first = await world.start()
    held = await asyncio.gather(*(world.holds() for _ in range(20)))
    second, third = await asyncio.gather(start_with(world, DEAF), start_with(world, DEAF))

    first.kill()
    for message_id in held:
        await world.owned_by_other(message_id, first.name, ADOPTION_SECONDS)
    world.release()
    await world.all_final(held, 30)

    taken = [await worker.metric("takeovers_total") for worker in (second, third)]
    assert sum(taken) == 20
    await all_is_well(world, dict.fromkeys(held, 0))


async def test_F08_a_worker_that_dies_while_it_takes_over_hinders_nobody(world: Fleet) -> None:
    first, second, _ = await asyncio.gather(
        world.start(), start_with(world, DEAF, step("leases.take", "kill", "after")), start_with(world, DEAF)
    )
    message_id = await world.holds()
    if await world.owner(message_id) != first.name:
        pytest.fail("only the first worker reads")

    # Paused, the third cannot be the faster one.
    third = world.workers[2]
    third.pause()
    first.kill()
    assert await second.ended(ADOPTION_SECONDS) == -signal.SIGKILL
    third.resume()
    await until(lambda: _owned_by(world, message_id, third.name), ADOPTION_SECONDS, "the third has it")

    world.release()
    assert (await world.final(message_id)).verdict == "succeeded"
    await all_is_well(world, {message_id: 0})


async def _owned_by(world: Fleet, message_id: str, name: str) -> bool:
    return await world.owner(message_id) == name


async def test_F09_a_job_longer_than_every_timeout_stays_with_its_living_owner(world: Fleet) -> None:
    first, second = await asyncio.gather(world.start(), start_with(world, DEAF))
    message_id = await world.holds()

    beats = await _beats(world, first.name)
    await until(lambda: _beaten(world, first.name, beats, 12_000), 30, "more than two leases have passed")
    world.release()
    final = await world.final(message_id)

    assert (final.worker, final.attempt) == (first.name, 1)
    assert await second.metric("takeovers_total") == 0
    await all_is_well(world, {message_id: 0})


async def _beats(world: Fleet, name: str) -> int:
    return int(await world.redis.hget(KEYS.worker(name), "seen_at"))


async def _beaten(world: Fleet, name: str, since: int, milliseconds: int) -> bool:
    return await _beats(world, name) >= since + milliseconds


async def test_F20_c25_a_message_that_kills_its_workers_is_buried_before_it_kills_them_all(
    world: Fleet,
) -> None:
    message_id = await world.send(job="render")
    deadly = step("ledger.keep:Intended", "kill", "before", nth=0)
    victims = 0
    while not await world.finals():
        victims += 1
        assert victims <= 4
        worker = await start_with(world, deadly, wait=False)
        ending = asyncio.create_task(worker.process.wait())
        buried = asyncio.create_task(world.final(message_id, 40))
        await asyncio.wait({ending, buried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ending, buried):
            task.cancel()

    final = (await world.finals())[0]
    assert (final.verdict, final.error_code) == ("poison", "request.poison")
    assert victims == 4
    assert world.dispatched() == []
    assert await world.redis.xlen(KEYS.dead) == 1
    await all_is_well(world, {message_id: None})


@pytest.mark.telling
async def test_F44_c26_a_worker_told_to_stop_twice_leaves_at_once_and_loses_nothing(world: Fleet) -> None:
    first = await world.start()
    held = await world.holds()
    world.nomad.faults.delay("dispatch", seconds=1.2, times=1)
    asked = await world.send(job="render")
    await until(lambda: _state_is(world, asked, b"dispatching"), 10, "a dispatch is under way")

    first.terminate()
    first.terminate()
    code = await first.ended(10)
    await world.start()
    world.release()
    await world.all_final([held, asked], 40)

    assert code == 0
    assert not any(world.nomad.job(entry["job_id"]).stop for entry in world.dispatched())
    await all_is_well(world, {held: 0, asked: 0})


async def test_F44_a_drain_that_takes_longer_than_its_grace_is_cut_off_and_made_good(world: Fleet) -> None:
    world.nomad.faults.events_before_answers(1.0, times=1)
    first = await world.start(WORKER_DRAIN_SECONDS="2.5")
    message_id = await world.send(job="render")
    await until(lambda: _state_is(world, message_id, b"dispatching"), 10, "a dispatch is under way")

    world.server.pause()
    first.terminate()
    code = await first.ended(12)
    world.server.resume()
    await world.start()

    assert code == 0
    assert first.logged("worker.drain_cut_off")
    assert (await world.final(message_id, 40)).verdict == "succeeded"
    await all_is_well(world, {message_id: 0})


async def _state_is(world: Fleet, message_id: str, state: bytes) -> bool:
    key = KEYS.message(MessageKey("requests", message_id))
    return bool(await world.redis.hget(key, "state") == state)


async def test_c08_progress_goes_on_where_the_dead_owner_left_it(world: Fleet) -> None:
    first, _ = await asyncio.gather(world.start(), start_with(world, DEAF))
    message_id = await world.holds()
    before = [reply.seq for reply in await world.replies()]

    first.kill()
    await world.owned_by_other(message_id, first.name)
    world.release(exit_code=3)
    final = await world.final(message_id)

    replies = await world.replies()
    assert [reply.seq for reply in replies][: len(before)] == before
    assert all(later.seq == earlier.seq + 1 for earlier, later in pairwise(replies))
    assert len({reply.type for reply in replies}) == len(replies)
    assert (final.verdict, final.exit_code) == ("failed", 3)
    await all_is_well(world, {message_id: 3})


async def test_F24_the_consumer_of_a_dead_worker_goes_only_after_its_messages_did(world: Fleet) -> None:
    first, _ = await asyncio.gather(world.start(), start_with(world, DEAF))
    message_id = await world.holds()
    first.kill()
    await first.ended(5)
    during = {consumer["name"] for consumer in await world.redis.xinfo_consumers(STREAM, "workers")}
    await world.owned_by_other(message_id, first.name)
    world.release()
    await world.final(message_id)

    assert first.name.encode() in during
    await all_is_well(world, {message_id: 0})
