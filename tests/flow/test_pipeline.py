"""The loop: what it does with errors, with a second child, and when the worker leaves."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from tests.flow.world import FakeNomad, HandClock, MemoryQueue, settle
from worker.core.keys import Keys
from worker.core.lifecycle import Ended, Fact, JobAccepted, ReplyPublished, advance
from worker.core.model import Dispatched, Entry, MessageKey, Order, Phase, Place, Record, Verdict
from worker.core.pace import Pace
from worker.core.policy import Policy
from worker.core.request import Limits
from worker.errors import DuplicateChild, Fenced, NomadDenied, NomadTimeout, RedisUnavailable, WorkerError
from worker.flow.admit import Admit
from worker.flow.children import Children
from worker.flow.dispatch import Dispatch
from worker.flow.gate import Gate
from worker.flow.instruments import NoInstruments
from worker.flow.intake import Intake
from worker.flow.lease import Lease
from worker.flow.pipeline import Pipeline
from worker.flow.queue import Turns, Waiting
from worker.flow.repeat import Repeat
from worker.flow.settle import Settle
from worker.flow.slots import Slots
from worker.flow.watch import Watch
from worker.ports import Admission

pytestmark = pytest.mark.anyio

KEY = MessageKey("requests", "1-0")


class MemoryLedger:
    """Keeps records in memory; `errors` are raised first, one per call."""

    def __init__(self) -> None:
        self.records: dict[MessageKey, Record] = {}
        self.facts: list[Fact] = []
        self.errors: list[WorkerError] = []

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def admit(self, admission: Admission) -> Record | None:
        self._fail()
        fresh = Record(admission.key, Phase.RECEIVED, admission.token, admission.routing, seq=1)
        return self.records.setdefault(admission.key, fresh)

    async def keep(self, before: Record, fact: Fact) -> Record:
        self._fail()
        after = advance(before, fact)
        if isinstance(fact, JobAccepted):
            kept = self.records[before.key].job_id
            if kept and kept != fact.job_id:
                text = "one too many"
                raise DuplicateChild(text, kept_job_id=kept)
        self.facts.append(fact)
        if not isinstance(fact, Ended):
            self.records[before.key] = after
        return after

    async def settle(self, record: Record) -> Record:
        self._fail()
        self.records[record.key] = advance(record, ReplyPublished("9-0"))
        return self.records[record.key]

    async def recall(self, key: MessageKey) -> Record | None:
        return self.records.get(key)


class MemoryInbox:
    def __init__(self) -> None:
        self.entries: dict[MessageKey, Entry] = {}

    async def read(self, limit: int, within_seconds: float | None = None) -> Sequence[Entry]:
        raise NotImplementedError

    async def mine(self) -> Sequence[MessageKey]:
        raise NotImplementedError

    async def fetch(self, keys: Sequence[MessageKey]) -> Sequence[Entry]:
        return [self.entries.get(key, Entry(key, None)) for key in keys]


class World:
    def __init__(self) -> None:
        self.clock, self.nomad = HandClock(), FakeNomad()
        self.ledger, self.inbox = MemoryLedger(), MemoryInbox()
        self.lease, self.gate = Lease(self.clock, 9.0), Gate(self.clock)
        self.lease.renewed(self.clock.monotonic())
        self.faults: list[BaseException] = []
        children = Children(self.clock)
        none = NoInstruments()
        self.queue, self.policy = MemoryQueue(), Policy()
        self.slots = Slots(Pace(30, adaptive=False), self.clock)
        self.waiting = Waiting(
            self.queue,
            self.lease,
            self.gate,
            self.clock,
            none,
            lambda: self.policy,
            Turns({"requests": 1}),
            slots=self.slots,
            max_in_flight=100,
        )
        admit = Admit(self.inbox, self.ledger, Limits(Keys("{t}")), lambda: self.policy, "{message_id}")
        self.pipeline = Pipeline(
            admit,
            Dispatch(
                self.nomad,
                children,
                self.lease,
                self.gate,
                self.clock,
                none,
                slots=self.slots,
                max_takeovers=3,
            ),
            Watch(self.nomad, children, self.clock, sweep_soon=_ignore),
            Settle(self.ledger, self.nomad, self.clock, none),
            self.ledger,
            self.clock,
            none,
            self.faults.append,
            repeat=Repeat(admit, self.clock, lambda: self.policy),
            park=self.waiting.park,
        )
        self.waiting.serve(self.pipeline)

    def takes(self, *, passing: bool = False, **fields: bytes) -> None:
        entry = Entry(KEY, {name.encode(): value for name, value in (fields or {"job": b"render"}).items()})
        self.inbox.entries[KEY] = entry
        self.pipeline.take_entries([entry], passing=passing)

    @property
    def record(self) -> Record:
        return self.ledger.records[KEY]


def _ignore(_: Place) -> bool:
    return True


@pytest.fixture
def world() -> World:
    return World()


async def test_a_detached_message_is_settled_right_after_its_dispatch(world: World) -> None:
    world.takes(job=b"render", detach=b"1")
    await settle()

    assert (world.record.phase, world.record.outcome and world.record.outcome.verdict) == (
        Phase.SETTLED,
        Verdict.DETACHED,
    )
    assert len(world.pipeline) == 0
    assert world.pipeline.freed.is_set()


async def test_a_message_whose_job_runs_holds_its_payload_no_more(world: World) -> None:
    world.takes(job=b"render", payload=b"x" * 16_384)
    await settle()

    (message,) = world.pipeline.messages
    assert world.record.phase is Phase.RUNNING
    assert (message.entry, message.request) == (None, None)


async def test_a_faulty_entry_is_settled_as_rejected_without_asking_nomad(world: World) -> None:
    world.takes(job=b"")
    await settle()

    assert world.record.outcome is not None
    assert world.record.outcome.error_code == "request.field_missing"
    assert world.nomad.orders == []


async def test_what_was_learnt_outlasts_an_outage_of_redis(world: World) -> None:
    world.takes(job=b"render", detach=b"1")
    world.ledger.errors = [RedisUnavailable("down")] * 7

    for _ in range(40):
        await world.clock.pass_(1)
        world.lease.renewed(world.clock.monotonic())

    assert world.record.phase is Phase.SETTLED
    assert len(world.nomad.orders) == 1


async def test_a_fenced_message_is_dropped_and_the_worker_goes_on(world: World) -> None:
    world.takes()
    await settle()
    assert world.record.phase is Phase.RUNNING
    world.ledger.errors = [Fenced("another owner")]
    world.takes()  # already in hand: left alone
    assert len(world.pipeline) == 1

    await world.pipeline.drain(1)

    assert (len(world.pipeline), world.faults) == (0, [])


async def test_an_error_of_ours_ends_the_process_and_leaks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> Record:
        text = "a fault of ours"
        raise ZeroDivisionError(text)

    monkeypatch.setattr(world.ledger, "keep", broken)

    world.takes()
    await settle()

    assert [type(fault) for fault in world.faults] == [ZeroDivisionError]
    assert len(world.pipeline) == 0


async def test_the_job_that_is_one_too_many_is_stopped_and_the_first_one_watched(world: World) -> None:
    def another_owner_was_faster(order: Order) -> Dispatched | None:
        key = MessageKey("requests", order.token)
        world.ledger.records[key] = replace(world.ledger.records[key], job_id="render/dispatch-1-first")
        return None

    world.nomad.plan = [another_owner_was_faster]

    world.takes()
    await settle()

    assert world.nomad.stopped == list(world.nomad.jobs.values())
    assert (world.record.phase, world.record.job_id) == (Phase.RUNNING, "render/dispatch-1-first")


async def test_leaving_lets_a_request_under_way_come_to_a_record(world: World) -> None:
    answered = asyncio.Event()

    async def slow(order: Order) -> Dispatched:
        await answered.wait()
        return world.nomad.create(order)

    world.nomad.dispatch = slow  # type: ignore[method-assign]
    world.takes()
    await settle()
    leaving = asyncio.create_task(world.pipeline.drain(10))
    await settle()
    assert not leaving.done()

    answered.set()
    cut_off = await leaving

    assert cut_off == 0
    assert world.record.phase is Phase.RUNNING
    assert world.record.job_id in world.nomad.jobs.values()


@pytest.mark.parametrize("job_runs", [True, False])
async def test_leaving_drops_at_once_what_only_waits(world: World, *, job_runs: bool) -> None:
    if not job_runs:
        world.nomad.plan = [_timeout] * 9
    world.takes()
    await settle()

    async with asyncio.timeout(5):
        cut_off = await world.pipeline.drain(60)

    assert cut_off == 0
    assert world.record.phase is (Phase.RUNNING if job_runs else Phase.DISPATCHING)


async def test_what_another_worker_took_meanwhile_is_let_go(world: World) -> None:
    world.takes()
    await settle()
    await world.pipeline.revalidate([KEY])
    await settle()
    assert len(world.pipeline) == 1

    world.ledger.records[KEY] = replace(world.record, fence=2)
    await world.pipeline.revalidate([KEY])
    await settle()

    assert len(world.pipeline) == 0
    assert world.faults == []


async def test_a_closed_gate_lets_one_message_in_to_try_when_none_is_in_hand(world: World) -> None:
    asked: list[int] = []

    async def read(limit: int, within_seconds: float | None = None) -> Sequence[Entry]:
        assert within_seconds is not None
        asked.append(limit)
        return []

    world.inbox.read = read  # type: ignore[method-assign]
    world.gate.failed(NomadDenied("Permission denied"))
    intake = Intake(
        world.inbox,
        world.pipeline,
        world.lease,
        world.gate,
        world.clock,
        NoInstruments(),
        world.waiting,
        streams=["requests"],
        max_waiting=1_000,
    )

    reading = asyncio.create_task(intake.run(lambda: None))
    await world.clock.pass_(0.1)
    intake.stop()
    await world.clock.pass_(1)

    await reading
    assert set(asked) == {1}


async def test_nothing_is_begun_while_leaving(world: World) -> None:
    await world.pipeline.drain(1)

    world.takes()

    assert len(world.pipeline) == 0


def _timeout(_: Order) -> Dispatched | None:
    text = "no answer"
    raise NomadTimeout(text)
