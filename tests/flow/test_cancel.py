"""Cancelling inside one worker: what was not sent never is, what may have been sent is found and stopped."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.flow.test_dispatch import World, raises
from tests.flow.world import HandClock, message, settle
from worker.core.lifecycle import Ended, JobAccepted, StopOrdered, advance
from worker.core.model import MessageKey, Order, Phase, Place, Verdict
from worker.errors import NomadDenied, NomadTimeout, RedisUnavailable
from worker.flow.cancel import CHECK_SECONDS, CancelFeed
from worker.flow.children import Children
from worker.flow.dispatch import CANCELLED
from worker.flow.message import Message
from worker.flow.watch import Watch

pytestmark = pytest.mark.anyio

KEY = MessageKey("requests", "1-0")


@pytest.fixture
def world() -> World:
    return World()


async def test_a_message_cancelled_after_its_intent_is_not_sent(world: World) -> None:
    told = message(Phase.DISPATCHING)
    told.cancel_told = True
    assert told.record is not None

    fact = await world.dispatch.send(told, told.record)

    assert fact == Ended(CANCELLED)
    assert world.nomad.orders == []


async def test_a_job_that_may_exist_is_looked_for_before_a_message_counts_as_cancelled(world: World) -> None:
    def lost(order: object) -> None:
        world.nomad.create(order)  # type: ignore[arg-type]
        raise NomadTimeout("no answer")

    world.nomad.plan = [lost]
    told = message(Phase.DISPATCHING)
    assert told.record is not None
    sending = asyncio.create_task(world.dispatch.send(told, told.record))
    await settle()

    told.cancel_told = True
    await world.clock.pass_(20)

    # The job is there, so the message runs, to be stopped by the watch.
    assert isinstance(await sending, JobAccepted)
    assert len(world.nomad.orders) == 1


async def test_a_dispatch_that_made_no_job_ends_as_cancelled_once_none_can_appear(world: World) -> None:
    world.nomad.plan = [raises(NomadTimeout("no answer"))]
    told = message(Phase.DISPATCHING, quarantine_until_ms=world.clock.now_ms() + 17_000)
    assert told.record is not None
    sending = asyncio.create_task(world.dispatch.send(told, told.record))
    await settle()

    told.cancel_told = True
    await world.clock.pass_(16)
    assert not sending.done()
    await world.clock.pass_(4)

    assert await sending == Ended(CANCELLED)
    assert len(world.nomad.orders) == 1
    assert world.nomad.lookups == 2


def looked_for(world: World) -> Message:
    """Cancelled when a first look, right after an unanswered request, had found nothing."""
    told = message(Phase.DISPATCHING, quarantine_until_ms=world.clock.now_ms() + 16_000)
    told.unsure, told.looked, told.cancel_told = True, True, True
    return told


async def test_a_job_that_appears_after_the_first_look_is_found_all_the_same(world: World) -> None:
    told = looked_for(world)
    assert told.record is not None
    sending = asyncio.create_task(world.dispatch.send(told, told.record))
    await settle()
    assert (world.nomad.lookups, sending.done()) == (1, False)

    # Nomad comes round to the request only now.
    world.nomad.create(Order(Place("", "default"), "render", token="1-0"))
    await world.clock.pass_(16)

    assert isinstance(await sending, JobAccepted)
    assert world.nomad.orders == []


async def test_who_may_not_list_jobs_asks_by_dispatching_so_that_the_job_can_be_stopped(world: World) -> None:
    world.nomad.lookup_error = NomadDenied("no list-jobs")

    done = await world.dispatches(looked_for(world))

    assert done.phase is Phase.RUNNING
    assert len(world.nomad.orders) == 1


async def test_a_running_job_is_ordered_to_stop_once(world: World) -> None:
    watch = Watch(world.nomad, Children(world.clock), world.clock, sweep_soon=lambda _: True)
    told = message(Phase.RUNNING, job_id="render/dispatch-1-a", eval_id="e")
    assert told.record is not None
    watching = asyncio.create_task(watch.next(told, told.record))
    await settle()
    assert not watching.done()

    told.cancel_told = True
    watch.look_again(told.record)
    fact = await watching

    assert isinstance(fact, StopOrdered)
    assert fact.verdict is Verdict.CANCELLED
    told.record = advance(told.record, fact)
    again = asyncio.create_task(watch.next(told, told.record))
    await settle()
    assert world.nomad.stopped == ["render/dispatch-1-a"]
    again.cancel()


async def test_a_job_stopped_for_another_reason_keeps_it(world: World) -> None:
    watch = Watch(world.nomad, Children(world.clock), world.clock, sweep_soon=lambda _: True)
    told = message(Phase.RUNNING, job_id="render/dispatch-1-a", stopping="timed_out")
    told.cancel_told = True
    assert told.record is not None

    watching = asyncio.create_task(watch.next(told, told.record))
    await settle()

    assert not watching.done()
    assert told.record.routing.place == Place("", "default")
    watching.cancel()


class Orders:
    """Orders as Redis would tell them."""

    def __init__(self) -> None:
        self.opened = 0
        self.heard: asyncio.Queue[list[MessageKey] | Exception] = asyncio.Queue()

    async def open(self) -> Sequence[MessageKey]:
        self.opened += 1
        return [KEY]

    async def listen(self) -> Sequence[MessageKey]:
        answer = await self.heard.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Told:
    """Stands for the pipeline: notes what it is told."""

    def __init__(self) -> None:
        self.keys: list[MessageKey] = []

    def cancel(self, key: MessageKey) -> None:
        self.keys.append(key)


async def test_orders_are_heard_at_once_and_looked_for_now_and_then() -> None:
    orders, told, clock = Orders(), Told(), HandClock()
    loop = asyncio.create_task(CancelFeed(orders, told, clock).run(lambda: None))  # type: ignore[arg-type]
    await settle()
    other = MessageKey("requests", "2-0")

    orders.heard.put_nowait([other])
    await settle()
    assert told.keys == [KEY, other]
    await clock.pass_(CHECK_SECONDS)
    orders.heard.put_nowait([])
    await settle()

    assert orders.opened == 2
    loop.cancel()


async def test_after_an_outage_all_open_orders_are_looked_at_again() -> None:
    orders, told, clock = Orders(), Told(), HandClock()
    loop = asyncio.create_task(CancelFeed(orders, told, clock).run(lambda: None))  # type: ignore[arg-type]
    await settle()

    orders.heard.put_nowait(RedisUnavailable("away"))
    await clock.pass_(1)

    assert orders.opened == 2
    loop.cancel()
