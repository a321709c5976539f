"""What is known of each dispatched job in this worker's hands, gathered from events and reads.

Decides nothing about how a job ended; forgets everything about jobs that nobody here waits for.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from worker.core.frames import Frame
from worker.core.gather import merge
from worker.core.model import Place
from worker.core.observed import Allocation, Evaluation, Job, Snapshot, TaskGroup
from worker.ports import Clock

EARLY_SECONDS = 10.0
"""How long events wait for the dispatch's answer, which they can overtake."""
EARLY_LIMIT = 10_000
GROUPS_KEPT = 200
NEVER = float("inf")


class Bell:
    """An `asyncio.Event` for one waiter, in a seventh of its memory: every job in flight has one."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it was set since it was cleared."""
        return self._rung

    def set(self) -> None:
        """Wake the waiter, now or as soon as it waits."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Let the next wait wait."""
        self._rung = False

    async def wait(self) -> None:
        """Return once it is set."""
        if self._rung:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


@dataclass(slots=True)
class Child:
    """One dispatched job that a message waits for."""

    place: Place
    job_id: str
    parent: str
    snapshot: Snapshot
    added_at: float
    """Monotonic seconds since when it is watched here."""
    started: bool = False
    """Whether it was seen running before it came into this worker's hands."""
    followed: bool = True
    """Whether events and sweeps tell of it. A message taken over may be of a place not served here."""
    read_at: float = NEVER
    """Monotonic seconds at which it is to be read from the API."""
    listed_at: int = 0
    """Index of its last change when a sweep last had it read: nothing else is there to be read until then."""
    reads: int = 0
    """Reads in a row that told nothing new."""
    looked_at: float = -NEVER
    """Monotonic seconds at which the last read that was answered was begun."""
    blocked_since: float = NEVER
    """Monotonic seconds since when it waits for a place, be it the first one or another one."""
    changed: Bell = field(default_factory=Bell)
    ending_since: float = NEVER
    """Monotonic seconds since when the job is stopped or dead and its tasks may still be ending."""

    @property
    def unseen(self) -> bool:
        """Whether nothing was told of it yet."""
        return self.snapshot.job is None and not self.snapshot.gone

    @property
    def running(self) -> bool:
        """Whether it was placed, as far as is known here."""
        return self.started or any(
            allocation.client_status == "running" for allocation in self.snapshot.allocations.values()
        )

    @property
    def known_index(self) -> int:
        """The greatest index of anything known of it."""
        return _newest(self.snapshot)

    def read_by(self, at: float) -> None:
        """Have it read at that time, unless it is to be read earlier."""
        if at < self.read_at:
            self.read_at = at
            self.changed.set()


class Children:
    """The children by place and job ID, and events that came before their child was known."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._children: dict[Place, dict[str, Child]] = {}
        self._expected: Counter[tuple[Place, str]] = Counter()
        self._early: OrderedDict[tuple[Place, str], tuple[float, Snapshot]] = OrderedDict()
        self._groups: OrderedDict[str, list[TaskGroup]] = OrderedDict()
        """The groups of each parameterized job, which its children share: read anew they cost 1 kB each."""

    def expect(self, place: Place, parent: str) -> None:
        """A dispatch of `parent` is under way: keep events of children not known yet."""
        self._expected[place, parent] += 1

    def expect_no_more(self, place: Place, parent: str) -> None:
        """That dispatch is over, and its child was added, if there is one."""
        self._expected[place, parent] -= 1
        if not self._expected[place, parent]:
            del self._expected[place, parent]

    def get(self, place: Place, job_id: str) -> Child | None:
        """A child that was added before."""
        return self._children.get(place, {}).get(job_id)

    def add(self, place: Place, parent: str, job_id: str, *, started: bool = False) -> Child:
        """Begin to gather what is told of a job; events that came early are applied."""
        _, snapshot = self._early.pop((place, job_id), (0.0, Snapshot(job_id=job_id)))
        child = Child(place, job_id, parent, snapshot, self._clock.monotonic(), started)
        self._children.setdefault(place, {})[job_id] = child
        return child

    def forget(self, place: Place, job_id: str) -> None:
        """Nobody waits for this job any more."""
        self._children.get(place, {}).pop(job_id, None)

    def of(self, place: Place) -> Iterable[Child]:
        """All children in one place."""
        return list(self._children.get(place, {}).values())

    def unlearn(self, place: Place, index: int) -> list[Child]:
        """Forget what was told after this index, for the servers went back to it.

        They give the same indexes out again: what is known would pass for newer than what they tell now.

        Returns:
            The children of which nothing is known any more.
        """
        for key, (_, snapshot) in list(self._early.items()):
            if key[0] == place and _newest(snapshot) > index:
                del self._early[key]
        unlearnt = [child for child in self.of(place) if _newest(child.snapshot) > index]
        for child in unlearnt:
            child.snapshot = Snapshot(job_id=child.job_id)
            child.reads = child.listed_at = 0
            child.added_at = self._clock.monotonic()
        return unlearnt

    def wanted(self, place: Place) -> Callable[[str], bool]:
        """Tells of a job ID whether its events are of use; asked before an event is decoded in full."""
        children = self._children.setdefault(place, {})

        def wanted(job_id: str) -> bool:
            if job_id in children:
                return True
            parent, found, _ = job_id.rpartition("/dispatch-")
            return bool(found) and (place, parent) in self._expected

        return wanted

    def apply(self, place: Place, frame: Frame) -> None:
        """Merge one frame's events into what is known."""
        for job in frame.jobs:
            self._merge(place, job.id, job=self._sharing(job))
        for job_id in frame.deleted:
            self._merge(place, job_id, deleted=True)
        for evaluation in frame.evaluations:
            self._merge(place, evaluation.job_id, evaluations=(evaluation,))
        for allocation in frame.allocations:
            self._merge(place, allocation.job_id, allocations=(allocation,))

    def _merge(
        self,
        place: Place,
        job_id: str,
        *,
        job: Job | None = None,
        deleted: bool = False,
        evaluations: tuple[Evaluation, ...] = (),
        allocations: tuple[Allocation, ...] = (),
    ) -> None:
        child = self.get(place, job_id)
        if child is None:
            known = self._known_early(place, job_id)
            merged = merge(known, job=job, deleted=deleted, evaluations=evaluations, allocations=allocations)
            self._early[place, job_id] = (self._clock.monotonic(), merged)
            return
        merged = merge(
            child.snapshot, job=job, deleted=deleted, evaluations=evaluations, allocations=allocations
        )
        if merged is not child.snapshot:
            child.snapshot = merged
            child.reads = 0
            child.changed.set()

    def _sharing(self, job: Job) -> Job:
        """The job with the groups that its siblings have, where they are the same."""
        if job.task_groups is None:
            return job
        known = self._groups.get(job.parent_id)
        if known == job.task_groups:
            return replace(job, task_groups=known)
        self._groups[job.parent_id] = job.task_groups
        if len(self._groups) > GROUPS_KEPT:
            self._groups.popitem(last=False)
        return job

    def _known_early(self, place: Place, job_id: str) -> Snapshot:
        oldest = self._clock.monotonic() - EARLY_SECONDS
        while self._early:
            key, (since, _) = next(iter(self._early.items()))
            if since >= oldest and len(self._early) < EARLY_LIMIT:
                break
            del self._early[key]
        _, known = self._early.pop((place, job_id), (0.0, Snapshot(job_id=job_id)))
        return known


def _newest(snapshot: Snapshot) -> int:
    """The greatest index of anything known of a job."""
    return max(
        snapshot.job.modify_index if snapshot.job is not None else 0,
        *(one.modify_index for one in snapshot.evaluations.values()),
        *(one.modify_index for one in snapshot.allocations.values()),
        0,
    )
