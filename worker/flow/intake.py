"""Step 1: entries are read from the streams, never more than this worker can carry.

Knows nothing of what becomes of them; what cannot be carried stays in the stream for other replicas.
"""

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from worker.core.backoff import Backoff
from worker.core.instants import entry_time_ms
from worker.core.model import Entry
from worker.errors import GroupMissing, RedisUnavailable
from worker.flow.gate import Gate
from worker.flow.instruments import Instruments
from worker.flow.lease import Lease
from worker.flow.pipeline import Pipeline
from worker.flow.queue import Waiting
from worker.ports import Clock, Inbox

log = structlog.get_logger()

RETRIES = Backoff(first_seconds=0.1, most_seconds=5.0)
EMPTY_SECONDS = 0.01
"""After an empty read: a server that answers at once although it should block must not be spun upon."""


PASSING_MOST = 200
"""Messages on their way into the queue at once: enough to hide the round trips."""


class Intake:
    """Reads while there is room, a lease, and an open gate.

    Where messages queue, they are read as they come and put into the queue: what is not read yet could not
    be put in order. Then only the number of those that wait is bounded.

    Args:
        waiting: the queue; what waits there for its time only is taken up between two reads.
        streams: short names of what the inbox reads.
        max_waiting: messages in a stream's queue, beyond which no more are put into it.
    """

    def __init__(
        self,
        inbox: Inbox,
        pipeline: Pipeline,
        lease: Lease,
        gate: Gate,
        clock: Clock,
        instruments: Instruments,
        waiting: Waiting,
        *,
        streams: Sequence[str],
        max_waiting: int,
    ) -> None:
        self._inbox = inbox
        self._pipeline = pipeline
        self._lease = lease
        self._gate = gate
        self._clock = clock
        self._instruments = instruments
        self._waiting = waiting
        self._streams = streams
        self._max_waiting = max_waiting
        self._stopping = False
        self.reconcile_wanted = asyncio.Event()
        """Set after a read that failed: entries may be pending for this worker without its knowing."""

    def stop(self) -> None:
        """Read no more; a read under way is waited out, never cancelled."""
        self._stopping = True
        self._pipeline.freed.set()

    async def run(self, tick: Callable[[], None]) -> None:
        """Read until told to stop; `tick` on every round, so that a stalled loop is noticed."""
        failures = 0
        while not self._stopping:
            tick()
            queues = self._waiting.orders
            try:
                if not queues:
                    await self._waiting.fill_if_due()
            except GroupMissing as error:
                # Not skipped: the read below is what makes the group again.
                failures = await self._failed(error, failures)
            except RedisUnavailable as error:
                failures = await self._failed(error, failures)
                continue
            room = self._room_to_queue() if queues else self._room()
            # A blocking read may bring one entry per stream whatever is asked for.
            if room < len(self._streams) or self._lease.remaining_seconds <= 0:
                await self._rest()
                continue
            try:
                within_seconds = None if queues else self._waiting.look_again_seconds
                entries = await self._inbox.read(room, within_seconds)
            except RedisUnavailable as error:
                failures = await self._failed(error, failures)
                continue
            failures = 0
            self._count(entries)
            self._pipeline.take_entries(entries, passing=queues)
            if not entries:
                await self._clock.sleep(EMPTY_SECONDS)

    async def _failed(self, error: RedisUnavailable, failures: int) -> int:
        failures += 1
        self.reconcile_wanted.set()
        self._instruments.retried(error.code)
        if isinstance(error, GroupMissing):
            # Made again already. But Redis lost data, or somebody deleted it: a person should know.
            log.warning("intake.group_missing", code=error.code, error=str(error))
        else:
            log.warning("intake.read_failed", code=error.code, error=str(error), failures=failures)
        await self._clock.sleep(RETRIES.delay(failures, random.random()))  # noqa: S311
        return failures

    def _room(self) -> int:
        """How many entries may be read now."""
        room = self._waiting.room
        if self._gate.is_open:
            return room
        # Only a dispatch can find out that Nomad is back: without one in hand, a message is needed to try.
        tries = any(message.undecided for message in self._pipeline.messages)
        return 0 if tries else min(room, len(self._streams))

    def _room_to_queue(self) -> int:
        if sum(self._waiting.queued.values()) >= self._max_waiting:
            return 0
        return PASSING_MOST - self._pipeline.passing

    async def reconcile(self) -> None:
        """Take up entries that are pending for this worker but not in its hands.

        A read whose answer was lost leaves them; so does a message that was let go by mistake. What is in
        its hands but no longer pending for it was perhaps taken over while this process was paused.

        Raises:
            RedisUnavailable.
        """
        self.reconcile_wanted.clear()
        if self._stopping:
            return
        before = {message.key for message in self._pipeline.messages}
        pending = await self._inbox.mine()
        unknown = [key for key in pending if key not in before and key not in self._pipeline]
        await self._pipeline.revalidate(before - set(pending))
        if unknown:
            log.warning("intake.ghosts_adopted", count=len(unknown))
            for key in unknown:
                self._instruments.redelivered(key.stream, "reconciled")
            self._pipeline.take_keys(unknown)

    def _count(self, entries: Sequence[Entry]) -> None:
        for stream in self._streams:
            self._instruments.polled(stream)
        now_ms = self._clock.now_ms()
        for entry in entries:
            wait_ms = now_ms - entry_time_ms(entry.key.id)
            self._instruments.received(entry.key.stream, max(0, wait_ms) / 1000)

    async def _rest(self) -> None:
        """Wait for room, bounded, since the gate and the lease change without a word to us."""
        self._pipeline.freed.clear()
        try:
            async with asyncio.timeout(0.25):
                await self._pipeline.freed.wait()
        except TimeoutError:
            pass
