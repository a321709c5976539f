"""The watch: whatever events do or fail to do, the next fact about a job is found, and no read is wasted."""

import asyncio
from collections.abc import Mapping

import msgspec
import pytest
from msgspec.structs import replace

from tests.flow.world import FakeNomad, HandClock, message, settle
from worker.core.frames import Frame
from worker.core.lifecycle import Ended, Fact, Progressed, StopOrdered, advance
from worker.core.model import Phase, Place, Progress, Verdict
from worker.core.observed import (
    Allocation,
    Evaluation,
    Job,
    Living,
    Snapshot,
    Task,
    TaskEvent,
    TaskGroup,
    TaskState,
)
from worker.errors import NomadDenied
from worker.flow.children import Bell, Children
from worker.flow.feed import Feed
from worker.flow.instruments import NoInstruments
from worker.flow.message import Message
from worker.flow.watch import ENDING_SECONDS, QUIET_SECONDS, STOP_AGAIN_SECONDS, Watch

pytestmark = pytest.mark.anyio

PLACE = Place("", "default")
CHILD = "render/dispatch-1-a"


def job(status: str, index: int, *, stop: bool = False) -> Job:
    groups = [TaskGroup(name="g", count=1, tasks=[Task(name="t")])]
    return Job(
        id=CHILD,
        parent_id="render",
        type="batch",
        status=status,
        stop=stop,
        task_groups=groups,
        modify_index=index,
    )


def allocation(status: str, index: int, *, exit_code: int | None = None, killed: bool = False) -> Allocation:
    kinds = ["Started", *(["Killing"] if killed else [])]
    if exit_code is not None:
        kinds += ["Terminated", *(["Killed"] if killed else [])]
    events = [
        TaskEvent(type=kind, time=at, exit_code=(exit_code or 0) if kind == "Terminated" else 0)
        for at, kind in enumerate(kinds, 1)
    ]
    state = TaskState(
        state="running" if exit_code is None else "dead",
        failed=bool(exit_code) and not killed,
        events=events,
    )
    return Allocation(
        id="a1",
        job_id=CHILD,
        name=f"{CHILD}.g[0]",
        task_group="g",
        node_id="n1",
        node_name="node-1",
        client_status=status,
        desired_status="stop" if killed else "run",
        task_states={"t": state},
        create_index=5,
        modify_index=index,
    )


RUNNING = Frame(6, jobs=(job("running", 6),), allocations=(allocation("running", 6),))
SUCCEEDED = Frame(9, jobs=(job("dead", 9),), allocations=(allocation("complete", 9, exit_code=0),))


def whole(frame: Frame) -> Snapshot:
    """What reading the API gives when all of a frame is true."""
    return Snapshot(
        job_id=CHILD,
        job=frame.jobs[0],
        allocations={one.id: one for one in frame.allocations},
        evaluations={one.id: one for one in frame.evaluations},
        whole=True,
    )


class ReadableNomad(FakeNomad):
    """Answers reads with what a test laid out."""

    def __init__(self) -> None:
        super().__init__()
        self.shows = Snapshot(job_id=CHILD, gone=True, whole=True)
        self.alive: Mapping[str, Living] = {CHILD: Living(1)}
        self.reads = 0

    async def snapshot(self, place: Place, job_id: str) -> Snapshot:  # noqa: ARG002
        self.reads += 1
        return self.shows

    async def live_children(self, place: Place, parent: str) -> Mapping[str, Living]:  # noqa: ARG002
        return self.alive


class World:
    def __init__(self, *, placement_deadline_seconds: float = 0) -> None:
        self.clock = HandClock()
        self.nomad = ReadableNomad()
        self.children = Children(self.clock)
        self.feed = Feed(self.nomad, self.children, self.clock, NoInstruments(), PLACE, sweep_seconds=45)
        self.sweeps_asked = 0
        self.followed = True
        self.watch = Watch(
            self.nomad,
            self.children,
            self.clock,
            sweep_soon=self._asked,
            placement_deadline_seconds=placement_deadline_seconds,
        )
        self.message = self.running()

    def running(self, **record: object) -> Message:
        """A message whose job was just dispatched by this worker."""
        made = message(Phase.RUNNING, job_id=CHILD, eval_id="e1", dispatched_at_ms=self.clock.now_ms())
        assert made.record is not None
        made.record = replace(made.record, **record)
        made.accepted()
        return made

    def _asked(self, place: Place) -> bool:
        assert place == PLACE
        self.sweeps_asked += 1
        return self.followed

    def begin(self) -> "asyncio.Task[Fact]":
        assert self.message.record is not None
        return asyncio.create_task(self.watch.next(self.message, self.message.record))

    async def fact(self) -> Fact:
        """The next fact, which must be there without any time passing."""
        task = self.begin()
        await settle()
        assert task.done(), "nothing was found yet"
        return task.result()

    def keep(self, fact: Fact) -> None:
        assert self.message.record is not None
        self.message.record = advance(self.message.record, fact)


async def test_events_alone_tell_the_way_and_the_end_without_a_single_read() -> None:
    world = World()
    first = world.begin()
    await settle()
    world.children.apply(PLACE, RUNNING)
    fact = await first
    assert isinstance(fact, Progressed)
    assert fact.step is Progress.RUNNING
    world.keep(fact)

    last = world.begin()
    await settle()
    world.children.apply(PLACE, SUCCEEDED)

    ended = await last
    assert isinstance(ended, Ended)
    assert (ended.outcome.verdict, ended.outcome.exit_code) == (Verdict.SUCCEEDED, 0)
    assert world.nomad.reads == 0


async def test_events_that_came_before_the_dispatchs_answer_count() -> None:
    world = World()
    world.children.expect(PLACE, "render")
    world.children.apply(PLACE, SUCCEEDED)
    world.children.expect_no_more(PLACE, "render")

    assert isinstance(await world.fact(), Ended)


async def test_a_job_that_no_event_tells_about_is_read_after_a_while() -> None:
    world = World()
    world.nomad.shows = whole(SUCCEEDED)
    task = world.begin()
    await settle()
    assert world.nomad.reads == 0

    world.clock.seconds += QUIET_SECONDS
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr] # time passed: look again

    assert isinstance(await task, Ended)
    assert world.nomad.reads == 1


async def test_an_end_that_no_event_told_is_found_by_the_sweep() -> None:
    world = World()
    task = world.begin()
    await settle()
    world.children.apply(PLACE, RUNNING)
    world.keep(await task)
    task = world.begin()
    await settle()
    world.nomad.alive, world.nomad.shows = {}, whole(SUCCEEDED)

    await world.feed.sweep()
    world.clock.seconds += 3
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr]

    assert isinstance(await task, Ended)


async def test_the_sweep_leaves_running_jobs_alone_and_reads_those_not_started() -> None:
    world = World()
    task = world.begin()
    await settle()
    await world.feed.sweep()
    child = world.children.get(PLACE, CHILD)
    assert child is not None
    assert child.read_at < world.clock.monotonic() + 3

    child.read_at = float("inf")
    world.children.apply(PLACE, RUNNING)
    world.keep(await task)
    await world.feed.sweep()

    assert child.read_at == float("inf")


LOST = Snapshot(
    job_id=CHILD,
    job=job("pending", 20),
    allocations={"a1": allocation("lost", 20)},
    evaluations={"e2": Evaluation(id="e2", job_id=CHILD, status="blocked", triggered_by="node-update")},
    whole=True,
)


@pytest.mark.parametrize("adopted", [False, True])
async def test_a_job_that_lost_its_node_unseen_is_read_told_of_and_stopped_in_time(adopted: bool) -> None:  # noqa: FBT001
    world = World(placement_deadline_seconds=100)
    if adopted:
        world.message = message(
            Phase.RUNNING, job_id=CHILD, dispatched_at_ms=1, placed_at_ms=1, shown="running"
        )
        task = world.begin()
        await settle()
    else:
        world.children.apply(PLACE, RUNNING)
        world.keep(await world.begin())
        task = world.begin()
        await settle()
    world.nomad.alive = {CHILD: Living(20, waits=True)}
    world.nomad.shows = LOST

    await world.feed.sweep()
    await world.clock.pass_(3)
    told = await task

    assert isinstance(told, Progressed)
    assert told.step is Progress.BLOCKED
    world.keep(told)
    last = world.begin()
    await world.clock.pass_(99)
    assert not last.done()
    await world.clock.pass_(2)
    assert (await last) == StopOrdered(Verdict.UNPLACED, world.clock.now_ms())
    await world.feed.sweep()


async def test_a_job_that_waits_is_read_by_a_sweep_only_where_the_list_shows_a_change_not_known() -> None:
    world = World()
    task = world.begin()
    await settle()
    child = world.children.get(PLACE, CHILD)
    assert child is not None
    asked: list[bool] = []

    for changed_at, told_at in [(5, 0), (5, 0), (7, 0), (9, 9), (9, 0), (10, 0)]:
        child.read_at = float("inf")
        world.nomad.alive = {CHILD: Living(changed_at)}
        if told_at:
            world.children.apply(PLACE, Frame(told_at, jobs=(job("pending", told_at),)))
        await world.feed.sweep()
        asked.append(child.read_at < float("inf"))

    assert asked == [True, False, True, False, False, True]
    task.cancel()


async def test_thousands_of_adopted_running_jobs_cost_one_sweep_and_no_read_each() -> None:
    world = World()
    world.message = world.running(shown="running", seq=3)
    world.message.made_here = False
    task = world.begin()
    await settle()
    assert world.sweeps_asked == 1
    await world.feed.sweep()
    world.clock.seconds += 60
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr]
    await settle()
    assert (world.nomad.reads, task.done()) == (0, False)

    world.nomad.alive, world.nomad.shows = {}, whole(SUCCEEDED)
    await world.feed.sweep()
    world.clock.seconds += 3
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr]

    assert isinstance(await task, Ended)


async def test_an_adopted_job_that_had_not_started_is_read_at_once() -> None:
    world = World()
    world.message = world.running(shown="blocked", seq=3)
    world.message.made_here = False
    world.nomad.shows = whole(SUCCEEDED)

    assert isinstance(await world.fact(), Ended)
    assert world.nomad.reads == 1


async def test_a_step_already_published_is_not_published_again() -> None:
    world = World()
    world.message = world.running(shown="running", seq=3)
    task = world.begin()
    await settle()

    world.children.apply(PLACE, RUNNING)
    await settle()

    assert not task.done()
    task.cancel()


async def test_a_run_limit_stops_the_job_once_and_again_if_it_does_not_stop() -> None:
    world = World()
    started_ms = world.clock.now_ms()
    world.message = world.running(shown="running", placed_at_ms=started_ms)
    assert world.message.record is not None
    routing = replace(world.message.record.routing, timeout_seconds=10.0)
    world.message.record = replace(world.message.record, routing=routing)
    world.clock.seconds += 10

    ordered = await world.fact()
    assert ordered == StopOrdered(Verdict.TIMED_OUT, world.clock.now_ms())
    world.keep(ordered)
    task = world.begin()
    await settle()
    assert world.nomad.stopped == [CHILD]

    child = world.children.get(PLACE, CHILD)
    assert child is not None
    child.changed.set()
    await settle()
    assert world.nomad.stopped == [CHILD]
    world.clock.seconds += STOP_AGAIN_SECONDS
    child.changed.set()
    await settle()
    assert world.nomad.stopped == [CHILD, CHILD]

    stopped = Frame(
        9,
        jobs=(job("dead", 9, stop=True),),
        allocations=(allocation("complete", 9, exit_code=137, killed=True),),
    )
    world.children.apply(PLACE, stopped)
    world.nomad.shows = whole(stopped)
    world.clock.seconds += 1
    child.changed.set()
    ended = await task
    assert isinstance(ended, Ended)
    assert ended.outcome.verdict is Verdict.TIMED_OUT


async def test_a_stop_that_is_denied_does_not_hide_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.message = world.running(shown="running", seq=3, stopping="timed_out")
    world.nomad.shows = whole(SUCCEEDED)

    async def denied(*_: object) -> None:
        raise NomadDenied("Permission denied")

    monkeypatch.setattr(world.nomad, "stop", denied)
    task = world.begin()
    await settle()
    assert not task.done()

    world.children.apply(PLACE, SUCCEEDED)

    ended = await task
    assert isinstance(ended, Ended)
    assert ended.outcome.verdict is Verdict.SUCCEEDED


async def test_an_adopted_job_of_a_place_not_served_is_read_until_it_ends() -> None:
    world = World()
    world.followed = False
    world.message = world.running(shown="running", seq=3)
    world.message.made_here = False
    world.nomad.shows = whole(RUNNING)
    task = world.begin()
    await settle()
    assert world.nomad.reads == 1

    world.nomad.shows = whole(SUCCEEDED)
    world.clock.seconds += 60
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr]

    assert isinstance(await task, Ended)
    assert world.nomad.reads == 2


async def test_a_job_not_placed_by_the_deadline_is_ordered_to_stop() -> None:
    world = World(placement_deadline_seconds=60)
    world.nomad.shows = whole(Frame(5, jobs=(job("pending", 5),)))
    world.clock.seconds += 60

    assert await world.fact() == StopOrdered(Verdict.UNPLACED, world.clock.now_ms())
    assert world.nomad.reads == 1


async def test_a_job_that_was_placed_while_nobody_watched_is_not_stopped_for_its_placement_deadline() -> None:
    world = World(placement_deadline_seconds=60)
    world.message.made_here = False
    world.nomad.shows = whole(RUNNING)
    world.clock.seconds += 3_600

    fact = await world.fact()

    assert isinstance(fact, Progressed)
    assert fact.step is Progress.RUNNING


async def test_a_job_that_waits_for_another_place_is_stopped_at_the_same_deadline() -> None:
    world = World(placement_deadline_seconds=60)
    world.message = world.running(shown="running", placed_at_ms=world.clock.now_ms(), seq=3)
    world.clock.seconds += 3_600
    blocked = Evaluation(
        id="e2", job_id=CHILD, triggered_by="queued-allocs", status="blocked", modify_index=9
    )
    waits = Frame(9, jobs=(job("pending", 9),), evaluations=(blocked,))
    world.nomad.shows = whole(waits)
    task = world.begin()
    await settle()
    world.children.apply(PLACE, waits)
    world.keep(await task)
    assert world.message.record is not None
    assert world.message.record.shown == "blocked"

    task = world.begin()
    await settle()
    assert not task.done()
    world.clock.seconds += 60
    world.children.get(PLACE, CHILD).changed.set()  # type: ignore[union-attr]

    assert await task == StopOrdered(Verdict.UNPLACED, world.clock.now_ms())


async def test_a_stopped_job_whose_tasks_never_tell_their_end_is_decided_after_the_grace() -> None:
    world = World()
    world.message = world.running(shown="running", seq=3, stopping="cancelled")
    world.message.stop_sent_at = world.clock.monotonic()
    dying = Frame(
        9,
        jobs=(job("dead", 9, stop=True),),
        allocations=(allocation("running", 8, killed=True),),
    )
    world.nomad.shows = whole(dying)
    task = world.begin()
    await settle()
    world.children.apply(PLACE, dying)
    await settle()
    assert not task.done()

    child = world.children.get(PLACE, CHILD)
    assert child is not None
    for _ in range(5):
        world.clock.seconds += ENDING_SECONDS / 2
        child.changed.set()
        await settle()
        if task.done():
            break

    ended = await task
    assert isinstance(ended, Ended)
    assert ended.outcome.verdict is Verdict.CANCELLED


async def test_waiting_costs_no_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.nomad.shows = whole(RUNNING)
    task = world.begin()
    await settle()
    turns = 0
    original = Bell.wait

    async def counted(bell: Bell) -> None:
        nonlocal turns
        turns += 1
        await original(bell)

    monkeypatch.setattr(Bell, "wait", counted)
    dead = msgspec.structs.replace(job("dead", 9), stop=True)
    world.children.apply(PLACE, Frame(9, jobs=(dead,)))
    for _ in range(10):
        await settle()

    assert turns <= 3
    task.cancel()
