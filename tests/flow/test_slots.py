"""The dispatch slots: first come first served, as many as the pace allows, none lost to a cancellation."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flow.world import HandClock, settle
from worker.core.pace import Pace
from worker.flow.slots import READ_AHEAD, Slots

pytestmark = pytest.mark.anyio


def made(limit: int) -> Slots:
    return Slots(Pace(limit, adaptive=False), HandClock())


async def test_those_who_wait_are_served_in_the_order_of_asking() -> None:
    slots, served = made(1), []

    async def takes(name: int) -> None:
        await slots.take()
        served.append(name)

    waiting = [asyncio.create_task(takes(number)) for number in range(4)]
    await settle()
    for number in range(4):
        assert served == list(range(number + 1))
        slots.give_back()
        await settle()

    await asyncio.gather(*waiting)
    assert slots.waiting == 0


async def test_a_slot_given_to_one_that_is_cancelled_goes_to_the_next() -> None:
    slots = made(1)
    await slots.take()
    first, second = asyncio.create_task(slots.take()), asyncio.create_task(slots.take())
    await settle()

    slots.give_back()
    first.cancel()
    await settle()

    assert first.cancelled()
    assert second.done()
    assert not second.cancelled()


async def test_a_raised_limit_lets_those_who_wait_in_at_once() -> None:
    slots = Slots(Pace(16), HandClock())
    waiting = [asyncio.create_task(slots.take()) for _ in range(6)]
    await settle()
    before = sum(task.done() for task in waiting)

    slots.answered(0.004)
    await settle()

    assert (before, sum(task.done() for task in waiting)) == (1, 4)
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize(("round_seconds", "limit"), [(0.0, 1), (0.04, 8)])
async def test_a_busy_workers_own_delay_does_not_pass_for_nomads(round_seconds: float, limit: int) -> None:
    busy = False
    clock = HandClock()
    slots = Slots(Pace(8), clock, round_seconds=lambda: round_seconds if busy else 0.0)
    slots.answered(0.004)
    busy = True
    holding = [asyncio.create_task(slots.take()) for _ in range(40)]

    for _ in range(40):
        await clock.pass_(0.2)
        slots.answered(0.104)
        slots.give_back()

    assert slots.limit == limit
    for task in holding:
        task.cancel()


@given(data=st.data(), limit=st.integers(1, 5))
async def test_whoever_comes_goes_or_gives_up_the_slots_are_all_there_in_the_end(
    data: st.DataObject, limit: int
) -> None:
    slots, holding, most = made(limit), set[int](), 0

    async def works(name: int, rests: int) -> None:
        nonlocal most
        await slots.take()
        try:
            holding.add(name)
            most = max(most, len(holding))
            for _ in range(rests):
                await asyncio.sleep(0)
        finally:
            holding.discard(name)
            slots.give_back()

    dice = random.Random(data.draw(st.integers(0, 1_000)))
    tasks = [asyncio.create_task(works(number, dice.randrange(4))) for number in range(20)]
    while not all(task.done() for task in tasks):
        if dice.random() < 0.4:
            dice.choice(tasks).cancel()
        await asyncio.sleep(0)

    assert most <= limit
    for _ in range(limit):
        async with asyncio.timeout(1):
            await slots.take()
    assert slots.waiting == 0


async def test_no_more_is_read_than_a_few_for_each_slot_and_hunger_is_told() -> None:
    slots, hungry = made(2), list[int]()
    slots.on_hunger = lambda: hungry.append(slots.waiting)
    ahead = READ_AHEAD * 2
    tasks = [asyncio.create_task(slots.take()) for _ in range(2 + ahead)]
    await settle()

    for _ in range(ahead // 2):
        slots.give_back()
    await settle()

    assert [slots.room(count) for count in (0, 2, 2 + ahead // 2, 2 + ahead)] == [
        2 + ahead,
        ahead,
        ahead // 2,
        0,
    ]
    assert hungry == [ahead // 2]
    for task in tasks:
        task.cancel()


async def test_nothing_is_read_while_nomad_has_too_much_waiting() -> None:
    slots = made(4)

    slots.pressed(1.0, 0.0)
    full = slots.room(0)
    slots.pressed(0.9, 1.0)

    assert (full, slots.room(4)) == (0, READ_AHEAD * 4)
