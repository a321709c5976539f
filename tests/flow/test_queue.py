"""What waits in Redis and what comes out of it: the rule, the room, the streams' turns."""

import asyncio

import pytest

from tests.flow.test_pipeline import KEY, World
from tests.flow.world import settle
from worker.core.instants import format_rfc3339
from worker.core.lifecycle import Fact, Parked
from worker.core.model import MessageKey, Phase, Record, Verdict
from worker.core.policy import Policy
from worker.errors import NomadDenied, NomadUnavailable, RedisUnavailable
from worker.flow.gate import FAILURES_TO_CLOSE
from worker.flow.queue import LOOK_SECONDS, SOON_MS, Turns, Waiting

pytestmark = pytest.mark.anyio

LIMITED = Policy.parse({"limits": {"cap": 10}})


@pytest.fixture
def world() -> World:
    return World()


def in_ms(world: World, ms: int) -> bytes:
    return format_rfc3339(world.clock.now_ms() + ms).encode()


async def test_without_limits_nothing_waits_in_redis_but_what_is_far_off(world: World) -> None:
    world.takes(not_before=in_ms(world, SOON_MS), job=b"render")
    await world.clock.pass_(SOON_MS / 1000)
    assert world.record.phase is Phase.RUNNING

    other = World()
    other.takes(not_before=in_ms(other, SOON_MS + 1), job=b"render", deadline=in_ms(other, 9_000))
    await settle()

    due, deadline = other.clock.now_ms() + SOON_MS + 1, other.clock.now_ms() + 9_000
    assert other.ledger.facts == [Parked(due, deadline)]
    assert (other.record.phase, len(other.pipeline)) == (Phase.WAITING, 0)


async def test_with_limits_every_sound_message_waits_for_its_turn(world: World) -> None:
    world.policy = LIMITED
    world.takes()
    await settle()

    assert world.ledger.facts == [Parked(0, 0)]
    assert world.nomad.orders == []


async def test_a_faulty_or_expired_message_is_answered_without_waiting(world: World) -> None:
    world.policy = LIMITED
    world.takes(job=b"render", deadline=in_ms(world, -1))
    await settle()

    assert world.record.outcome is not None
    assert world.record.outcome.verdict is Verdict.EXPIRED


async def test_a_picked_message_does_not_wait_again(world: World) -> None:
    world.policy = LIMITED
    world.queue.put(KEY)
    world.ledger.records[KEY] = world.queue.ready["requests"][0][0]

    assert await world.waiting.fill() == 1
    await settle()

    assert world.record.phase is Phase.RUNNING
    assert len(world.nomad.orders) == 1


async def test_what_is_on_its_way_into_the_queue_takes_no_room(world: World) -> None:
    world.policy = LIMITED
    world.ledger.errors = [RedisUnavailable("away")]
    world.takes(passing=True)
    await settle()

    assert (len(world.pipeline), world.pipeline.carried, world.waiting.room) == (1, 0, 100)


async def test_a_message_that_comes_back_before_its_parking_has_ended_here_is_begun_after_it(
    world: World,
) -> None:
    world.policy = LIMITED
    parked, answered = asyncio.Event(), asyncio.Event()
    keep = world.ledger.keep

    async def slow_keep(before: Record, fact: Fact) -> Record:
        after = await keep(before, fact)
        if isinstance(fact, Parked):
            parked.set()
            await answered.wait()
        return after

    world.ledger.keep = slow_keep  # type: ignore[method-assign]
    world.takes()
    await parked.wait()
    world.queue.put(KEY)
    world.ledger.records[KEY] = world.queue.ready["requests"][0][0]
    await world.waiting.fill()
    answered.set()
    await settle()

    assert world.record.phase is Phase.RUNNING
    assert world.faults == []


async def test_no_more_are_taken_than_there_is_room(world: World) -> None:
    world.policy = LIMITED
    for number in range(150):
        world.queue.put(MessageKey("requests", f"{number}-1"))

    taken = await world.waiting.fill()

    assert taken == 100
    assert world.waiting.room == 0


async def test_a_closed_gate_lets_one_out_to_try(world: World) -> None:
    world.policy = LIMITED
    for number in range(5):
        world.queue.put(MessageKey("requests", f"{number}-1"))
    world.gate.failed(NomadDenied("Permission denied"))

    assert await world.waiting.fill() == 1


def with_room_for_one(world: World, turns: Turns) -> Waiting:
    waiting = Waiting(
        world.queue,
        world.lease,
        world.gate,
        world.clock,
        world.waiting._instruments,
        lambda: LIMITED,
        turns,
        slots=world.slots,
        max_in_flight=1,
    )
    waiting.serve(world.pipeline)
    return waiting


async def test_streams_share_by_weight_however_few_slots_come_free(world: World) -> None:
    turns = Turns({"low": 1, "high": 3})
    waiting = with_room_for_one(world, turns)
    for number in range(40):
        for stream in turns.weights:
            world.queue.put(MessageKey(stream, f"{number}-1"), detach=b"1")
    for _ in range(20):
        assert await waiting.fill() == 1
        await settle()

    served = [key.stream for key in world.queue.given]
    assert (served.count("high"), served.count("low")) == (15, 5)


async def test_in_strict_order_a_lower_stream_goes_when_it_has_waited_long_enough(world: World) -> None:
    turns = Turns({"low": 1, "high": 3}, strict=True, ageing_seconds=10)
    waiting = with_room_for_one(world, turns)
    world.queue.put(MessageKey("low", "100000-0"), detach=b"1")
    for at in (100_500, 105_000, 109_999, 110_001, 115_000):
        world.queue.put(MessageKey("high", f"{at}-0"), detach=b"1")

    for _ in range(6):
        await waiting.fill()
        await settle()

    assert [str(key) for key in world.queue.given] == [
        *("high:100500-0", "high:105000-0", "high:109999-0"),
        *("low:100000-0", "high:110001-0", "high:115000-0"),
    ]


async def test_the_loop_looks_when_something_moves_and_now_and_then(world: World) -> None:
    world.policy = LIMITED
    running = asyncio.create_task(world.waiting.run(lambda: None))
    await settle()
    looks = len(world.queue.asked)

    world.waiting.look_soon()
    await world.clock.pass_(0.1)
    soon = len(world.queue.asked)
    async with asyncio.timeout(LOOK_SECONDS * 4):
        while len(world.queue.asked) == soon:
            await asyncio.sleep(0.01)
            await world.clock.pass_(0.01)
    world.waiting.stop()
    await world.clock.pass_(1)
    await running

    assert soon > looks


async def runs(world: World, seconds: float) -> None:
    """Let the loop run for so long."""
    running = asyncio.create_task(world.waiting.run(lambda: None))
    await world.clock.pass_(seconds)
    world.waiting.stop()
    await world.clock.pass_(1)
    await running


async def test_a_changed_policy_counts_what_waits_for_its_dispatch(world: World) -> None:
    for _ in range(FAILURES_TO_CLOSE):
        world.gate.failed(NomadUnavailable("no leader"))
    world.takes()
    await settle()
    assert world.record.phase is Phase.RECEIVED

    world.policy = LIMITED
    await runs(world, 0.1)

    assert world.queue.occupied == [KEY]


async def test_a_changed_policy_counts_what_is_in_hand(world: World) -> None:
    world.takes()
    await settle()
    assert world.record.phase is Phase.RUNNING
    assert world.queue.occupied == []

    world.policy = LIMITED
    await runs(world, 1)

    assert world.queue.occupied == [KEY]
