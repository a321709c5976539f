"""Step 4: a dispatched job is watched until its verdict is certain.

Knows nothing of event streams; it looks at what `children` gathered, and reads from the API when that is not
enough. The verdict itself is a rule in `core.verdict`.
"""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

import structlog

from worker.core.backoff import Backoff
from worker.core.gather import replace_with
from worker.core.lifecycle import Ended, Fact, Progressed, StopOrdered
from worker.core.model import Place, Progress, Record, Verdict
from worker.core.verdict import Final, judge
from worker.errors import NomadDenied, NomadUnavailable
from worker.flow.children import NEVER, Child, Children
from worker.flow.message import Message
from worker.ports import Clock, Nomad

log = structlog.get_logger()

QUIET_SECONDS = 5.0
"""A job just dispatched shows up as an event within milliseconds; without one, it is read."""
READ_CONCURRENCY = 2
"""Each read is three requests, one after the other. One connection is left for sweeps, stops, look-ups."""
REREADS = Backoff(first_seconds=0.3, most_seconds=15.0)
"""The first is soon: what `dead` leaves open is mostly told some hundred milliseconds later."""
STOP_AGAIN_SECONDS = 30.0
ENDING_SECONDS = 30.0
"""How long a stopped job's tasks may take to end before the verdict does without their exit codes:
a kill timeout (5 s unless the job says otherwise) and the client's next report."""


class _Now(NamedTuple):
    """One look at the clock, for all that follows from one judgement."""

    seconds: float
    """Monotonic."""
    ms: int
    """Unix milliseconds."""


class Watch:
    """Finds the next fact about a running job.

    Args:
        sweep_soon: have a place's sweep done out of turn; False where no events are followed.
        placement_deadline_seconds: a job not placed by then is stopped, verdict `unplaced`; 0: never.
    """

    def __init__(
        self,
        nomad: Nomad,
        children: Children,
        clock: Clock,
        *,
        sweep_soon: Callable[[Place], bool],
        placement_deadline_seconds: float = 0,
    ) -> None:
        self._nomad = nomad
        self._children = children
        self._clock = clock
        self._sweep_soon = sweep_soon
        self._placement_deadline_seconds = placement_deadline_seconds or NEVER
        self._reads = asyncio.Semaphore(READ_CONCURRENCY)

    async def next(self, message: Message, record: Record) -> Fact:
        """Wait for the next fact: a step forward, a reason to stop the job, or its end.

        Raises:
            NomadUnavailable, NomadDenied: Nomad could not be asked; what was gathered is kept.
        """
        child = self._child(message, record)
        while True:
            child.changed.clear()
            now = _Now(self._clock.monotonic(), self._clock.now_ms())
            finding = judge(
                child.snapshot,
                stopping=record.stopping,
                shown=record.shown,
                grace_over=_grace_over(child, now),
            )
            if isinstance(finding, Final):
                return Ended(finding.outcome)
            if finding.step is not Progress.BLOCKED:
                child.blocked_since = NEVER
            elif child.blocked_since == NEVER:
                child.blocked_since = now.seconds
            if finding.step is not None and finding.step != record.shown:
                return Progressed(finding.step, now.ms, finding.data)
            if verdict := self._reason_to_stop(child, message, record, now):
                return StopOrdered(verdict, now.ms)
            if record.stopping:
                await self._stop(message, record)
            if child.read_at == NEVER and (finding.needs_read or not child.followed):
                delay = REREADS.delay(child.reads + 1, random.random())  # noqa: S311
                child.read_at = now.seconds + delay
            await self._change(child, self._next_deadline(child, message, record, now))

    def look_again(self, record: Record) -> None:
        """Something else than Nomad's word is new about the message."""
        if child := self._children.get(record.routing.place, record.job_id):
            child.changed.set()

    def forget(self, record: Record) -> None:
        """The message left this worker's hands."""
        self._children.forget(record.routing.place, record.job_id)

    async def stop_duplicate(self, record: Record, job_id: str) -> None:
        """Stop a job that was dispatched although the message already had one."""
        await self._nomad.stop(record.routing.place, job_id)

    def _child(self, message: Message, record: Record) -> Child:
        place, job_id = record.routing.place, record.job_id
        child = self._children.get(place, job_id)
        if child is not None:
            return child
        fresh = bool(record.eval_id) and not message.unsure and message.made_here
        started = record.shown == Progress.RUNNING
        child = self._children.add(place, record.routing.job, job_id, started=started)
        if fresh:
            return child
        # Adopted, perhaps with thousands of others: one list tells which of them have ended.
        child.followed = self._sweep_soon(place)
        if not child.followed:
            log.warning("job.not_followed", job_id=job_id, namespace=place.namespace, region=place.region)
        if not (started and child.followed):
            child.read_at = self._clock.monotonic()
        return child

    def _reason_to_stop(self, child: Child, message: Message, record: Record, now: _Now) -> Verdict | None:
        if record.stopping:
            return None
        if message.cancelled:
            return Verdict.CANCELLED
        limit = record.routing.timeout_seconds if record.placed_at_ms else None
        if limit is not None and now.ms >= record.placed_at_ms + limit * 1000:
            return Verdict.TIMED_OUT
        overdue_at = self._overdue_at(child, record, now)
        if overdue_at > now.seconds:
            return None
        if child.looked_at >= overdue_at:
            return Verdict.UNPLACED
        # What is known may be old, as after a time without a worker: a job that runs must not be stopped.
        child.read_by(now.seconds)
        return None

    def _overdue_at(self, child: Child, record: Record, now: _Now) -> float:
        """Monotonic seconds at which the job has waited for a place for too long; NEVER: it need not wait."""
        if record.placed_at_ms:
            return child.blocked_since + self._placement_deadline_seconds
        waited_seconds = (now.ms - record.dispatched_at_ms) / 1000
        return now.seconds - waited_seconds + self._placement_deadline_seconds

    async def _stop(self, message: Message, record: Record) -> None:
        now = self._clock.monotonic()
        if message.stop_sent_at and now - message.stop_sent_at < STOP_AGAIN_SECONDS:
            return
        message.stop_sent_at = now
        try:
            await self._nomad.stop(record.routing.place, record.job_id)
        except (NomadUnavailable, NomadDenied) as error:
            # Tried again later. Meanwhile the job may end by itself, and that must not go unnoticed.
            log.warning("job.not_stopped", job_id=record.job_id, code=error.code, error=str(error))
            return
        log.info("job.stop_sent", job_id=record.job_id, verdict=record.stopping)

    def _next_deadline(self, child: Child, message: Message, record: Record, now: _Now) -> float:
        """Monotonic seconds at which something is to be done although nothing was told."""
        deadlines = [_read_due(child)]
        if child.ending_since + ENDING_SECONDS > now.seconds:
            deadlines.append(child.ending_since + ENDING_SECONDS)
        if record.stopping:
            deadlines.append(message.stop_sent_at + STOP_AGAIN_SECONDS)
            return min(deadlines)
        if record.placed_at_ms and record.routing.timeout_seconds is not None:
            run_limit_ms = record.placed_at_ms + record.routing.timeout_seconds * 1000
            deadlines.append(now.seconds + (run_limit_ms - now.ms) / 1000)
        deadlines.append(self._overdue_at(child, record, now))
        return min(deadlines)

    async def _change(self, child: Child, deadline: float) -> None:
        """Wait until something is new about the child, at most until the deadline; read it if it is time."""
        wait = deadline - self._clock.monotonic()
        if wait > 0 and not child.changed.is_set():
            # A timer of its own costs a fraction of `asyncio.timeout`, and there is one per event of a job.
            alarm = asyncio.get_running_loop().call_later(wait, child.changed.set) if wait < NEVER else None
            try:
                await child.changed.wait()
            finally:
                if alarm is not None:
                    alarm.cancel()
        due = _read_due(child)
        if due != NEVER and due <= self._clock.monotonic():
            await self._read(child)

    async def _read(self, child: Child) -> None:
        child.reads += 1
        child.read_at = NEVER
        begun_at = self._clock.monotonic()
        try:
            async with self._reads:
                read = await self._nomad.snapshot(child.place, child.job_id)
        except BaseException:
            child.read_at = self._clock.monotonic()
            raise
        child.looked_at = begun_at
        known, child.snapshot = child.snapshot, replace_with(read, child.snapshot)
        if child.snapshot != known:
            child.reads = 0


def _grace_over(child: Child, now: _Now) -> bool:
    job = child.snapshot.job
    ending = child.snapshot.gone or (job is not None and (job.stop or job.status == "dead"))
    if not ending:
        child.ending_since = NEVER
    elif child.ending_since == NEVER:
        child.ending_since = now.seconds
    return now.seconds - child.ending_since >= ENDING_SECONDS


def _read_due(child: Child) -> float:
    if child.unseen and not child.started:
        return min(child.read_at, child.added_at + QUIET_SECONDS * (child.reads + 1))
    return child.read_at
