"""Working fakes for the flow: time moved by hand, and a Nomad that keeps its token's promise.

The simulator is the full Nomad; this one exists to fail at the very line a test means.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from itertools import count
from typing import Literal

from worker.core.frames import Frame
from worker.core.instants import entry_time_ms
from worker.core.model import Dispatched, Entry, MessageKey, Order, Phase, Place, Record, Request, Routing
from worker.core.observed import Job, Living, Snapshot
from worker.core.policy import Policy
from worker.flow.message import Message
from worker.ports import Picked


class HandClock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._number = count()

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.seconds + seconds, next(self._number), woken))
        await woken.wait()

    @property
    def sleepers(self) -> int:
        return len(self._sleepers)

    async def pass_(self, seconds: float) -> None:
        """Let time pass; everyone due wakes up in order."""
        until = self.seconds + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            due, _, woken = heapq.heappop(self._sleepers)
            self.seconds = due
            woken.set()
            await settle()
        self.seconds = until
        await settle()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class FakeNomad:
    """Jobs by token. `plan` holds what the next requests do instead of working."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.jobs: dict[str, str] = {}
        """Token to dispatched job ID."""
        self.lookups = 0
        self.stopped: list[str] = []
        self.purged: list[str] = []
        self.words: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self.plan: list[Callable[[Order], Dispatched | None]] = []
        self.lookup_error: Exception | None = None

    async def dispatch(self, order: Order) -> Dispatched:
        self.orders.append(order)
        if self.plan:
            answer = self.plan.pop(0)(order)
            if answer is not None:
                return answer
        return self.create(order)

    def create(self, order: Order) -> Dispatched:
        if order.token in self.jobs:
            return Dispatched(self.jobs[order.token], "")
        job_id = f"{order.job}/dispatch-1-{len(self.jobs):08x}"
        self.jobs[order.token] = job_id
        return Dispatched(job_id, f"eval-{len(self.jobs)}")

    async def job(self, place: Place, job_id: str) -> Job | None:  # noqa: ARG002
        return Job(id=job_id) if job_id in self.jobs.values() else None

    async def find_by_token(self, place: Place, parent: str, token: str) -> str | None:  # noqa: ARG002
        self.lookups += 1
        if self.lookup_error:
            raise self.lookup_error
        return self.jobs.get(token)

    async def live_children(self, place: Place, parent: str) -> Mapping[str, Living]:  # noqa: ARG002
        return dict.fromkeys(self.jobs.values(), Living(1))

    async def snapshot(self, place: Place, job_id: str) -> Snapshot:
        return Snapshot(job_id=job_id, job=await self.job(place, job_id), whole=True)

    async def stop(self, place: Place, job_id: str) -> None:  # noqa: ARG002
        self.stopped.append(job_id)

    async def purge(self, place: Place, job_id: str) -> None:  # noqa: ARG002
        self.purged.append(job_id)

    async def logs(
        self,
        place: Place,  # noqa: ARG002
        alloc: str,  # noqa: ARG002
        task: str,  # noqa: ARG002
        stream: Literal["stdout", "stderr"],
        tail_bytes: int,
    ) -> bytes:
        return self.words[stream][-tail_bytes:]

    def events(
        self, place: Place, index: int, wanted: Callable[[str], bool]
    ) -> AsyncGenerator[Sequence[Frame], None]:
        raise NotImplementedError


class MemoryQueue:
    """Gives out what a test puts in, in that order."""

    def __init__(self) -> None:
        self.ready: dict[str, list[tuple[Record, Entry]]] = {}
        self.look_again_ms = 0
        self.asked: list[tuple[str, int]] = []
        self.given: list[MessageKey] = []
        self.occupied: list[MessageKey] = []
        self.found: list[Record | MessageKey] = []

    def put(self, key: MessageKey, **fields: bytes) -> None:
        """A message that may go now."""
        routing = Routing(job="render", namespace="default", detach="detach" in fields)
        record = Record(key, Phase.RECEIVED, key.id, routing, fence=3, picked_at_ms=1)
        entry = Entry(key, {name.encode(): value for name, value in {"job": b"render", **fields}.items()})
        self.ready.setdefault(key.stream, []).append((record, entry))

    async def pick(self, stream: str, limit: int, policy: Policy) -> Picked:  # noqa: ARG002
        self.asked.append((stream, limit))
        waiting = self.ready.get(stream, [])
        given, self.ready[stream] = waiting[:limit], waiting[limit:]
        self.given += [record.key for record, _ in given]
        left = self.ready[stream]
        since = entry_time_ms(left[0][0].key.id) if left else 0
        return Picked(given, len(left), 0, since, self.look_again_ms)

    async def mend(self, stream: str) -> Sequence[Record | MessageKey]:  # noqa: ARG002
        return self.found

    async def occupy(self, record: Record, policy: Policy) -> None:  # noqa: ARG002
        self.occupied.append(record.key)

    async def recount(self) -> int:
        return 0


def message(phase: Phase = Phase.RECEIVED, *, entry_id: str = "1-0", **record: object) -> Message:
    """A message with a request for `render`, in the given phase."""
    key = MessageKey("requests", entry_id)
    routing = Routing(job="render", namespace="default")
    made = Record(key, phase, token=entry_id, routing=routing, **record)  # type: ignore[arg-type]
    return Message(key, record=made, request=Request(job="render", payload=b"x"))
