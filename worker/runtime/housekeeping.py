"""What every replica does now and then for all: take over from the dead, reconcile, retire, trim.

Each job is safe to do by several at once; none of them waits for another.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from worker.errors import Then, WorkerError
from worker.flow.instruments import Instruments
from worker.flow.intake import Intake
from worker.flow.pipeline import Pipeline
from worker.flow.queue import Waiting
from worker.ports import Leases
from worker.runtime.heartbeat import Heartbeat

log = structlog.get_logger()

SCAN_SECONDS = 2.0
"""With a lease of 9 s: a dead worker's messages are taken after at most 11.5 s."""
RECONCILE_SECONDS = 10.0
TIDY_SECONDS = 60.0
LONGEST_NOTICE_SECONDS = 86_400.0
TELL_AGAIN_SECONDS = 3_600.0


class Housekeeping:
    """Three loops with one owner, the task tree.

    Args:
        dead_retention_seconds: age at which dead letters are dropped; 0: never.
    """

    def __init__(
        self,
        leases: Leases,
        heartbeat: Heartbeat,
        pipeline: Pipeline,
        intake: Intake,
        instruments: Instruments,
        waiting: Waiting,
        *,
        dead_retention_seconds: float = 0,
    ) -> None:
        self._leases = leases
        self._heartbeat = heartbeat
        self._pipeline = pipeline
        self._intake = intake
        self._instruments = instruments
        self._waiting = waiting
        self._dead_retention_seconds = dead_retention_seconds
        self._told_at = float("-inf")

    async def take_over(self, tick: Callable[[], None]) -> None:
        """Scan for dead workers, for ever; `tick` on every round, so that a stalled loop is noticed."""
        while True:
            tick()
            await self._careful("take_over", self._take_over)
            await asyncio.sleep(SCAN_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def reconcile(self) -> None:
        """Reconcile pending entries with memory, for ever, and soon after a read that failed."""
        while True:
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    await self._intake.reconcile_wanted.wait()
                # The failed read may be a server that is away: give it a moment to be back.
                await asyncio.sleep(1)
            except TimeoutError:
                pass
            await self._careful("reconcile", self._intake.reconcile)

    async def tidy(self) -> None:
        """Retire consumers, trim streams and put the queue in order, for ever."""
        while True:
            await asyncio.sleep(TIDY_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            await self._careful("tidy", self._tidy)
            await self._careful("queue", self._waiting.tidy)

    async def _take_over(self) -> None:
        found = True
        while found:
            found = False
            for dead in await self._leases.dead():
                # Who left in order is gone for sure; who fell silent may be coming back with all the others.
                if not (dead.released or self._heartbeat.steady):
                    continue
                # Over the limit on messages in flight if need be: a running job costs little to watch.
                taken = await self._leases.take(dead, len(dead.pending))
                records = [record for record in taken if not self._pipeline.holds(record)]
                found = found or bool(records) or dead.more
                if records:
                    log.warning("worker.taken_over", dead_worker=dead.name, messages=len(records))
                    self._instruments.taken_over(len(records))
                    for record in records:
                        self._instruments.redelivered(record.key.stream, "taken_over")
                    self._pipeline.take_records(records)

    async def _tidy(self) -> None:
        retired, trimmed = await self._leases.retire(), await self._leases.trim()
        if retired or trimmed:
            log.info("streams.tidied", consumers_retired=retired, entries_trimmed=trimmed)
        if self._dead_retention_seconds:
            await self._expire_dead(self._dead_retention_seconds)

    async def _expire_dead(self, retention_seconds: float) -> None:
        notice_seconds = min(LONGEST_NOTICE_SECONDS, retention_seconds / 4)
        expiry = await self._leases.expire_dead(retention_seconds, notice_seconds)
        if expiry.dropped:
            log.warning("dead_letters.dropped", count=expiry.dropped)
        now = asyncio.get_running_loop().time()
        if expiry.announced and now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = now
            log.warning("dead_letters.expiring", count=expiry.announced, seconds_left=expiry.seconds_left)

    async def _careful(self, name: str, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except WorkerError as error:
            if error.then is Then.STOP:
                raise
            log.warning("housekeeping.failed", job=name, code=error.code, error=str(error))
