"""Keeps this worker's lease: the first loop to start and the last to end.

Knows nothing of messages. It stops beating when a supervised loop stalls, so that others take over from a
process that lives but does not work.
"""

import asyncio
from collections.abc import Callable

import structlog

from worker.errors import RedisUnavailable
from worker.flow.lease import Lease
from worker.ports import Leases
from worker.runtime.clock import SystemClock

log = structlog.get_logger()

BEATS_PER_LEASE = 3


class Heartbeat:
    """Renews the lease three times per lease.

    Args:
        stalled: names of supervised loops that have not come round in time.
    """

    def __init__(
        self,
        leases: Leases,
        lease: Lease,
        clock: SystemClock,
        *,
        lease_seconds: float,
        stalled: Callable[[], list[str]],
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._clock = clock
        self._period = lease_seconds / BEATS_PER_LEASE
        self._length = lease_seconds
        self._stalled = stalled
        self._last = float("-inf")
        self._steady_since = float("inf")

    @property
    def steady(self) -> bool:
        """Whether beats have come without a gap for a whole lease.

        After an outage of Redis every lease looks over, and the clock of a promoted replica may be off:
        who has only just come back must not take anything from those who are coming back too.
        """
        return self._clock.monotonic() - self._steady_since >= self._length

    async def beat(self) -> None:
        """Renew the lease once.

        Raises:
            RedisUnavailable.
        """
        sent_at = self._clock.monotonic()
        redis_ms = await self._leases.beat()
        now = self._clock.monotonic()
        if sent_at - self._last > self._length / 2:
            self._steady_since = now
        self._last = now
        self._clock.heard(redis_ms, sent_at)
        self._lease.renewed(sent_at)

    async def run(self, tick: Callable[[], None]) -> None:
        """Beat for ever; `tick` on every round, so that a stalled heartbeat is noticed."""
        while True:
            tick()
            if stalled := self._stalled():
                log.error("heartbeat.withheld", stalled=stalled)
            else:
                try:
                    await self.beat()
                except RedisUnavailable as error:
                    log.warning("heartbeat.failed", code=error.code, error=str(error))
            # A third of a period after a failure: one lost packet must not cost a third of the lease.
            late = self._clock.monotonic() - self._last > self._period
            await asyncio.sleep(self._period / BEATS_PER_LEASE if late else self._period)
