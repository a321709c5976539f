"""The event feed: it resumes where it was, and sweeps whenever it may have missed something."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

import pytest

from tests.flow.world import FakeNomad, HandClock, settle
from worker.core.frames import HEARTBEAT, Frame
from worker.core.model import Place
from worker.core.observed import Job, Living, TaskGroup
from worker.errors import FeedLost, FeedRefused, NomadUnavailable, WorkerError
from worker.flow.children import EARLY_SECONDS, Bell, Children
from worker.flow.feed import Feed
from worker.flow.instruments import NoInstruments

pytestmark = pytest.mark.anyio

PLACE = Place("", "default")
CHILD = "render/dispatch-1-a"


class StreamingNomad(FakeNomad):
    """Each connection gives its frames and then fails, or holds."""

    def __init__(self, *connections: list[Frame | list[Frame] | WorkerError]) -> None:
        super().__init__()
        self._connections = list(connections)
        self.asked_from: list[int] = []
        self.lists = 0
        self.list_errors: list[WorkerError] = []

    async def live_children(self, place: Place, parent: str) -> Mapping[str, Living]:  # noqa: ARG002
        self.lists += 1
        if self.list_errors:
            raise self.list_errors.pop()
        return {CHILD: Living(1)}

    async def _frames(self, index: int) -> AsyncGenerator[Sequence[Frame], None]:
        self.asked_from.append(index)
        for item in self._connections.pop(0) if self._connections else []:
            if isinstance(item, WorkerError):
                raise item
            await settle()  # a sweep that was asked for is done before the next line comes
            yield item if isinstance(item, list) else [item]
        await asyncio.get_running_loop().create_future()

    def events(
        self,
        place: Place,  # noqa: ARG002
        index: int,
        wanted: Callable[[str], bool],  # noqa: ARG002
    ) -> AsyncGenerator[Sequence[Frame], None]:
        return self._frames(index)


class World:
    def __init__(self, nomad: StreamingNomad) -> None:
        self.clock = HandClock()
        self.nomad = nomad
        self.children = Children(self.clock)
        self.child = self.children.add(PLACE, "render", CHILD)
        self.feed = Feed(nomad, self.children, self.clock, NoInstruments(), PLACE, sweep_seconds=1_000)

    async def run(self) -> None:
        loops = [asyncio.create_task(loop) for loop in (self.feed.follow(), self.feed.sweep_often())]
        for _ in range(30):
            await self.clock.pass_(1)
        for task in loops:
            task.cancel()
        await asyncio.wait(loops)


def frame(index: int) -> Frame:
    return Frame(index, jobs=(Job(id=CHILD, status="running", modify_index=index),))


async def test_a_lost_stream_is_resumed_from_the_last_index_and_swept_after() -> None:
    nomad = StreamingNomad([HEARTBEAT, frame(7), frame(9), FeedLost("EOF")], [HEARTBEAT])
    world = World(nomad)

    await world.run()

    assert nomad.asked_from == [0, 9]
    assert nomad.lists == 2
    assert world.feed.connected is False
    assert world.child.snapshot.job is not None
    assert world.child.snapshot.job.modify_index == 9


async def test_frames_that_come_at_once_are_taken_in_their_order() -> None:
    nomad = StreamingNomad([[HEARTBEAT, frame(7), HEARTBEAT, frame(9)], FeedLost("EOF")], [HEARTBEAT])
    world = World(nomad)

    await world.run()

    assert nomad.asked_from == [0, 9]
    assert nomad.lists == 2
    assert world.child.snapshot.job is not None
    assert world.child.snapshot.job.modify_index == 9


async def test_a_refused_stream_is_tried_again_and_never_counts_as_connected() -> None:
    nomad = StreamingNomad([FeedRefused("silent")], [FeedRefused("silent")], [HEARTBEAT])
    world = World(nomad)

    await world.run()

    assert nomad.asked_from == [0, 0, 0]
    assert nomad.lists == 1


@pytest.mark.parametrize("odd", [frame(3), Frame(0, incomplete=True), Frame(12, incomplete=True)])
async def test_an_index_that_goes_back_or_a_line_that_was_skipped_is_followed_by_a_sweep(odd: Frame) -> None:
    nomad = StreamingNomad([HEARTBEAT, frame(7), odd])
    world = World(nomad)

    await world.run()

    assert nomad.lists == 2


async def test_a_sweep_that_fails_is_done_again() -> None:
    nomad = StreamingNomad([HEARTBEAT])
    nomad.list_errors = [NomadUnavailable("no leader"), NomadUnavailable("no leader")]
    world = World(nomad)

    await world.run()

    assert nomad.lists == 3


async def test_events_of_children_nobody_expects_are_not_kept() -> None:
    world = World(StreamingNomad())
    wanted = world.children.wanted(PLACE)

    assert wanted(CHILD)
    assert not wanted("render/dispatch-1-b")
    world.children.expect(PLACE, "render")
    assert wanted("render/dispatch-1-b")
    assert not wanted("render2/dispatch-1-b")
    assert not wanted("render")
    world.children.expect_no_more(PLACE, "render")
    assert not wanted("render/dispatch-1-b")


async def test_early_events_are_kept_for_a_while_and_not_for_ever() -> None:
    world = World(StreamingNomad())
    early = Frame(5, jobs=(Job(id="render/dispatch-1-b", status="running", modify_index=5),))
    world.children.apply(PLACE, early)
    world.clock.seconds += EARLY_SECONDS + 1
    world.children.apply(PLACE, Frame(6, jobs=(Job(id="render/dispatch-1-c", modify_index=6),)))

    forgotten = world.children.add(PLACE, "render", "render/dispatch-1-b")
    kept = world.children.add(PLACE, "render", "render/dispatch-1-c")

    assert forgotten.snapshot.job is None
    assert kept.snapshot.job is not None
    await settle()


async def test_children_of_one_job_share_its_groups_until_the_job_is_changed() -> None:
    world = World(StreamingNomad())

    def told(number: int, count: int) -> list[TaskGroup] | None:
        job_id = f"render/dispatch-1-{number}"
        child = world.children.add(PLACE, "render", job_id)
        groups = [TaskGroup(name="g", count=count)]
        job = Job(id=job_id, parent_id="render", task_groups=groups, modify_index=number)
        world.children.apply(PLACE, Frame(number, jobs=(job,)))
        assert child.snapshot.job is not None
        assert child.snapshot.job.task_groups == groups
        return child.snapshot.job.task_groups

    first, second, third = told(1, 1), told(2, 1), told(3, 5)

    assert first is second is not third


async def test_a_bell_wakes_its_waiter_once_and_does_not_keep_it() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait())
    await settle()
    assert not waiting.done()

    bell.set()
    bell.set()
    await waiting
    await bell.wait()
    bell.clear()
    cancelled = asyncio.create_task(bell.wait())
    await settle()
    cancelled.cancel()
    await settle()
    bell.set()

    assert cancelled.cancelled()
    assert bell.is_set()
