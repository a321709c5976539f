"""The dispatch step: whatever happens to the request, at most one job, and never a job that is not there."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from tests.flow.world import FakeNomad, HandClock, message, settle
from worker.core.lifecycle import DispatchPutOff, Ended, Fact, Intended, JobAccepted, advance
from worker.core.model import Dispatched, Order, Phase, Verdict
from worker.core.pace import Pace
from worker.errors import (
    JobStopped,
    JobUnknown,
    NomadDenied,
    NomadTimeout,
    NomadUnavailable,
    PayloadLost,
    PoisonMessage,
)
from worker.flow.children import Children
from worker.flow.dispatch import Dispatch
from worker.flow.gate import FAILURES_TO_CLOSE, Gate
from worker.flow.instruments import NoInstruments
from worker.flow.lease import Lease
from worker.flow.message import Message
from worker.flow.slots import Slots

pytestmark = pytest.mark.anyio


class World:
    def __init__(self, concurrency: int = 4) -> None:
        self.clock = HandClock()
        self.nomad = FakeNomad()
        self.lease = Lease(self.clock, 9.0)
        self.lease.renewed(self.clock.monotonic())
        self.gate = Gate(self.clock)
        self.dispatch = Dispatch(
            self.nomad,
            Children(self.clock),
            self.lease,
            self.gate,
            self.clock,
            NoInstruments(),
            slots=Slots(Pace(concurrency, adaptive=False), self.clock),
            max_takeovers=3,
        )

    async def dispatches(self, of: Message) -> Message:
        """Walk a message through the step until it has a job or is put off, letting time pass."""
        task = asyncio.create_task(self._walk(of))
        while not task.done():
            await self.clock.pass_(0.5)
            self.lease.renewed(self.clock.monotonic())
        return task.result()

    async def _walk(self, of: Message) -> Message:
        assert of.record is not None
        while of.record.phase in {Phase.RECEIVED, Phase.DISPATCHING}:
            step = self.dispatch.prepare if of.record.phase is Phase.RECEIVED else self.dispatch.send
            fact = await step(of, of.record)
            of.record = advance(of.record, fact)
            if isinstance(fact, Intended):
                of.record = msgspec.structs.replace(of.record, quarantine_until_ms=fact.at_ms + 16_000)
        self.dispatch.let_go(of)
        return of


def raises(error: Exception) -> Callable[[Order], Dispatched | None]:
    def act(_: Order) -> Dispatched | None:
        raise error

    return act


@pytest.fixture
def world() -> World:
    return World()


async def test_a_message_becomes_one_job_with_its_id_as_the_token(world: World) -> None:
    done = await world.dispatches(message(entry_id="1719999999999-7"))

    (order,) = world.nomad.orders
    assert (order.token, order.payload, order.job) == ("1719999999999-7", b"x", "render")
    assert done.record is not None
    assert (done.record.phase, done.record.attempt) == (Phase.RUNNING, 1)
    assert world.nomad.lookups == 0


async def test_the_next_one_is_sent_before_the_answer_is_kept() -> None:
    world = World(concurrency=1)
    first, second = (
        message(Phase.DISPATCHING, attempt=1),
        message(Phase.DISPATCHING, entry_id="2-0", attempt=1),
    )
    assert first.record is not None
    assert second.record is not None
    accepted = await world.dispatch.send(first, first.record)

    async with asyncio.timeout(5):
        await world.dispatch.send(second, second.record)

    assert isinstance(accepted, JobAccepted)
    assert [order.token for order in world.nomad.orders] == ["1-0", "2-0"]


async def test_an_answer_lost_after_nomad_accepted_finds_the_job_and_makes_no_second(world: World) -> None:
    def accept_and_lose(order: Order) -> Dispatched | None:
        world.nomad.create(order)
        return raises(NomadTimeout("no answer"))(order)

    world.nomad.plan = [accept_and_lose]

    done = await world.dispatches(message())

    assert done.record is not None
    assert [done.record.job_id] == list(world.nomad.jobs.values())
    assert len(world.nomad.orders) == 1
    assert done.record.attempt == 1


async def test_a_request_lost_on_the_way_is_sent_again_with_the_same_token(world: World) -> None:
    world.nomad.plan = [raises(NomadTimeout("no answer")), raises(NomadUnavailable("reset"))]

    await world.dispatches(message())

    assert [order.token for order in world.nomad.orders] == ["1-0"] * 3
    assert len(world.nomad.jobs) == 1
    assert world.nomad.lookups >= 2


async def test_a_job_id_that_never_existed_is_not_believed_after_a_repeat(world: World) -> None:
    phantom = Dispatched("render/dispatch-1-phantom", "eval-phantom")
    world.nomad.plan = [raises(NomadTimeout("no answer")), lambda _: phantom]

    done = await world.dispatches(message())

    assert done.record is not None
    assert done.record.job_id in world.nomad.jobs.values()


async def test_a_job_id_is_not_believed_when_the_lease_ran_out_under_way(world: World) -> None:
    def paused(_: Order) -> Dispatched | None:
        world.clock.seconds += 60
        return Dispatched("render/dispatch-1-phantom", "eval-phantom")

    world.nomad.plan = [paused]

    done = await world.dispatches(message())

    assert done.record is not None
    assert done.record.job_id in world.nomad.jobs.values()


async def test_a_connection_refused_puts_the_message_back_unattempted(world: World) -> None:
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.record is not None
    world.nomad.plan = [raises(NomadUnavailable("refused", maybe_applied=False))]

    fact = await world.dispatch.send(of, of.record)

    assert isinstance(fact, DispatchPutOff)
    assert not of.has_slot
    done = await world.dispatches(message(entry_id="2-0"))
    assert done.record is not None
    assert done.record.attempt == 1


@pytest.mark.parametrize("job_exists", [True, False])
async def test_a_message_taken_over_mid_dispatch_is_looked_up_before_anything_is_sent(
    world: World, *, job_exists: bool
) -> None:
    of = message(Phase.DISPATCHING, attempt=1, quarantine_until_ms=world.clock.now_ms() + 7_000)
    of.unsure = of.inherited = True
    if job_exists:
        world.nomad.jobs["1-0"] = "render/dispatch-1-first"
    sent_at = []
    world.nomad.plan = [lambda _: sent_at.append(world.clock.now_ms())]

    start_ms = world.clock.now_ms()
    done = await world.dispatches(of)

    assert done.record is not None
    if job_exists:
        assert (done.record.job_id, world.nomad.orders) == ("render/dispatch-1-first", [])
    else:
        # Not before the earlier owner's request can no longer arrive.
        assert sent_at[0] >= start_ms + 7_000
        assert len(world.nomad.jobs) == 1


async def test_without_the_right_to_list_the_dispatch_itself_tells(world: World) -> None:
    world.nomad.lookup_error = NomadDenied("no list-jobs")
    world.nomad.jobs["1-0"] = "render/dispatch-1-first"
    of = message(Phase.DISPATCHING, attempt=1)
    of.unsure = of.inherited = True

    done = await world.dispatches(of)

    assert done.record is not None
    assert done.record.job_id == "render/dispatch-1-first"
    assert len(world.nomad.jobs) == 1


async def test_a_permanent_refusal_is_raised_and_not_repeated(world: World) -> None:
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.record is not None
    world.nomad.plan = [raises(JobUnknown("parameterized job not found"))]

    with pytest.raises(JobUnknown):
        await world.dispatch.send(of, of.record)

    assert world.gate.is_open


async def test_a_message_that_killed_its_workers_is_not_dispatched(world: World) -> None:
    of = message(takeovers=3)
    assert of.record is not None

    with pytest.raises(PoisonMessage):
        await world.dispatch.prepare(of, of.record)


async def test_a_message_that_killed_its_workers_is_adopted_if_it_has_a_job(world: World) -> None:
    world.nomad.jobs["1-0"] = "render/dispatch-1-first"
    of = message(Phase.DISPATCHING, attempt=1, takeovers=5)
    of.unsure = of.inherited = True

    done = await world.dispatches(of)

    assert done.record is not None
    assert done.record.job_id == "render/dispatch-1-first"


async def test_an_entry_lost_mid_dispatch_is_lost_only_if_there_is_no_job(world: World) -> None:
    def lost(entry_id: str) -> Message:
        of = message(Phase.DISPATCHING, attempt=1, entry_id=entry_id)
        of.unsure = of.inherited = True
        of.request, of.fault = None, PayloadLost("gone")
        return of

    world.nomad.jobs["1-0"] = "render/dispatch-1-first"
    done = await world.dispatches(lost("1-0"))
    assert done.record is not None
    assert done.record.job_id == "render/dispatch-1-first"
    with pytest.raises(PayloadLost):
        await world.dispatches(lost("2-0"))
    assert world.nomad.orders == []


async def test_a_passed_deadline_ends_the_message_undispatched(world: World) -> None:
    of = message()
    assert of.record is not None
    assert of.request is not None
    of.request = replace(of.request, deadline_ms=world.clock.now_ms() - 1)

    fact: Fact = await world.dispatch.prepare(of, of.record)

    assert isinstance(fact, Ended)
    assert fact.outcome.verdict is Verdict.EXPIRED


async def test_a_deadline_holds_for_repeats_too(world: World) -> None:
    of = message()
    assert of.request is not None
    of.request = replace(of.request, deadline_ms=world.clock.now_ms() + 1_000)
    world.nomad.plan = [raises(NomadTimeout("no answer"))] * 4

    done = await world.dispatches(of)

    assert done.record is not None
    assert done.record.outcome is not None
    assert done.record.outcome.verdict is Verdict.EXPIRED
    assert world.nomad.jobs == {}


async def test_a_deadline_before_the_earliest_start_is_answered_at_once(world: World) -> None:
    of = message()
    assert of.record is not None
    assert of.request is not None
    now_ms = world.clock.now_ms()
    of.request = replace(of.request, deadline_ms=now_ms - 1, not_before_ms=now_ms + 36_000_000)

    async with asyncio.timeout(5):
        fact: Fact = await world.dispatch.prepare(of, of.record)

    assert isinstance(fact, Ended)
    assert fact.outcome.verdict is Verdict.EXPIRED
    assert world.clock.sleepers == 0


def expiring(world: World, seconds: float) -> Message:
    """A message whose intent is kept, with so long until its deadline."""
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.request is not None
    of.request = replace(of.request, deadline_ms=world.clock.now_ms() + int(seconds * 1000))
    return of


def expired(of: Message) -> bool:
    assert of.record is not None
    return of.record.outcome is not None and of.record.outcome.verdict is Verdict.EXPIRED


async def test_a_deadline_that_passed_while_the_intent_was_kept_holds(world: World) -> None:
    done = await world.dispatches(expiring(world, -1))

    assert expired(done)
    assert world.nomad.orders == []


async def test_a_deadline_that_passed_while_the_lease_was_waited_for_holds() -> None:
    world = World()
    of = expiring(world, 30)
    world.clock.seconds += 20  # the lease is over
    task = asyncio.create_task(world._walk(of))
    await world.clock.pass_(20)
    world.lease.renewed(world.clock.monotonic())
    await world.clock.pass_(1)

    assert expired(await task)
    assert world.nomad.orders == []


async def test_a_deadline_that_passed_while_the_gate_was_closed_holds(world: World) -> None:
    refused = NomadUnavailable("connection refused", maybe_applied=False)
    for _ in range(FAILURES_TO_CLOSE):
        world.gate.failed(refused)
    of = expiring(world, 0.4)
    waiting = asyncio.create_task(world._walk(of))
    await world.clock.pass_(0.5)
    assert not waiting.done()
    world.gate.succeeded()

    async with asyncio.timeout(5):
        assert expired(await waiting)
    assert world.nomad.orders == []


async def test_a_deadline_holds_after_a_look_in_vain_too(world: World) -> None:
    of = expiring(world, 0.3)

    def refuse_late(_: Order) -> Dispatched | None:
        world.clock.seconds += 0.2
        message = "connection refused"
        raise NomadUnavailable(message, maybe_applied=False)

    world.nomad.plan = [raises(NomadTimeout("no answer")), refuse_late, refuse_late]

    done = await world.dispatches(of)

    assert expired(done)
    assert world.nomad.jobs == {}


async def test_a_repeat_that_is_refused_is_no_end_where_an_earlier_job_cannot_be_looked_for(
    world: World,
) -> None:
    world.nomad.lookup_error = NomadDenied("no list-jobs")
    world.nomad.plan = [raises(NomadTimeout("no answer")), raises(JobStopped('job "render" is stopped'))]

    done = await world.dispatches(message())

    assert done.record is not None
    assert done.record.outcome is not None
    assert done.record.outcome.verdict is Verdict.UNKNOWN_GC
    assert done.record.outcome.error_code == "job.untraceable"
    assert "list-jobs" in done.record.outcome.error_message
    assert "is stopped" in done.record.outcome.error_message


@pytest.mark.parametrize("why", ["lost", "poison"])
async def test_what_cannot_be_repeated_is_no_end_where_an_earlier_job_cannot_be_looked_for(
    world: World, why: str
) -> None:
    world.nomad.lookup_error = NomadDenied("no list-jobs")
    of = message(Phase.DISPATCHING, attempt=1, takeovers=3 if why == "poison" else 0)
    of.unsure = of.inherited = True
    if why == "lost":
        of.request, of.fault = None, PayloadLost("gone")

    done = await world.dispatches(of)

    assert done.record is not None
    assert done.record.outcome is not None
    assert done.record.outcome.error_code == "job.untraceable"
    assert world.nomad.orders == []


async def test_a_look_denied_to_one_message_says_nothing_about_anothers(world: World) -> None:
    denied, looked = message(entry_id="1-0"), message(entry_id="2-0")
    stopped = JobStopped('job "render" is stopped')
    world.nomad.plan = [raises(NomadTimeout("no answer")), raises(stopped)]
    world.nomad.lookup_error = NomadDenied("no list-jobs")
    await world.dispatches(denied)
    world.nomad.lookup_error = None
    world.nomad.plan = [raises(NomadTimeout("no answer")), raises(stopped)]

    with pytest.raises(JobStopped):
        await world.dispatches(looked)

    assert (denied.blind, looked.blind) == (True, False)


async def test_a_repeat_that_is_refused_after_a_look_in_vain_is_a_refusal(world: World) -> None:
    world.nomad.plan = [raises(NomadTimeout("no answer")), raises(JobStopped('job "render" is stopped'))]

    with pytest.raises(JobStopped):
        await world.dispatches(message())

    assert world.nomad.lookups == 1


async def test_a_check_that_fails_after_the_lease_ran_out_leaves_the_dispatch_uncertain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paused(order: Order) -> Dispatched | None:
        world.clock.seconds += 60
        return world.nomad.create(order)

    async def refused(*_: object) -> None:
        raise NomadUnavailable("connection refused", maybe_applied=False)

    monkeypatch.setattr(world.nomad, "job", refused)
    world.nomad.plan = [paused]
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.record is not None

    task = asyncio.create_task(world.dispatch.send(of, of.record))
    await settle()
    await world.clock.pass_(30)

    fact = await task
    assert isinstance(fact, JobAccepted)
    assert fact.job_id in world.nomad.jobs.values()


async def test_nothing_is_sent_without_a_certain_lease() -> None:
    world = World()
    world.clock.seconds += 60
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.record is not None

    task = asyncio.create_task(world.dispatch.send(of, of.record))
    await settle()
    assert world.nomad.orders == []
    world.lease.renewed(world.clock.monotonic())

    assert isinstance(await task, Intended)
    assert world.nomad.orders == []


async def test_no_more_requests_than_slots_are_under_way() -> None:
    world = World(concurrency=2)
    messages = [message(entry_id=f"{n}-0") for n in range(5)]
    waiting = [asyncio.create_task(world.dispatch.prepare(of, of.record)) for of in messages if of.record]
    await settle()
    assert [task.done() for task in waiting].count(True) == 2

    for of in messages:
        world.dispatch.let_go(of)
        await settle()

    assert all(task.done() for task in waiting)


async def test_failures_close_the_gate_and_one_trial_opens_it(world: World) -> None:
    of = message(Phase.DISPATCHING, attempt=1)
    assert of.record is not None
    world.nomad.plan = [raises(NomadDenied("Permission denied"))]
    assert isinstance(await world.dispatch.send(of, of.record), DispatchPutOff)
    assert not world.gate.is_open
    assert world.gate.reason == "nomad.permission_denied"

    done = await world.dispatches(message(entry_id="2-0"))

    assert done.record is not None
    assert done.record.phase is Phase.RUNNING
    assert world.gate.is_open


async def test_of_many_that_wait_the_first_trial_already_sends_a_request(world: World) -> None:
    world.gate.failed(NomadDenied("Permission denied"))
    waiting = [asyncio.create_task(world._walk(message(entry_id=f"{number}-0"))) for number in range(1, 5)]

    # The gate waits on the loop's time, bounded by what the clock says: both pass.
    async with asyncio.timeout(10):
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0.01)
            world.clock.seconds += 0.01

    assert len(world.nomad.orders) == 4
    assert world.clock.monotonic() < 1_001.1  # the first trial is due within a second
