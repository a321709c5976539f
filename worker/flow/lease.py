"""What this worker may still believe of its own lease, without asking Redis.

Knows nothing of how a lease is renewed; the heartbeat tells it when one was.
"""

import asyncio

from worker.errors import LeaseLost
from worker.ports import Clock

MARGIN_SECONDS = 2.0
"""Taken off the lease's length: clocks drift, and a renewal is as old as its request."""


class Lease:
    """The local deadline of the lease: counted from before the renewal was sent."""

    def __init__(self, clock: Clock, lease_seconds: float) -> None:
        self._clock = clock
        self._length = lease_seconds
        self._until = float("-inf")
        self._renewed = asyncio.Event()

    def renewed(self, sent_at: float) -> None:
        """A heartbeat sent at `sent_at` (monotonic seconds) was accepted."""
        self._until = max(self._until, sent_at + self._length - MARGIN_SECONDS)
        self._renewed.set()
        self._renewed = asyncio.Event()

    @property
    def remaining_seconds(self) -> float:
        """How long this worker certainly still holds its lease; negative when it may not."""
        return self._until - self._clock.monotonic()

    def require(self) -> None:
        """Check the lease, with no await between the check and what depends on it.

        Raises:
            LeaseLost: it may be over; others may be taking this worker's messages now.
        """
        if self.remaining_seconds <= 0:
            message = "this worker's lease may be over"
            raise LeaseLost(message)

    async def held(self) -> None:
        """Wait until the lease is certain again."""
        while self.remaining_seconds <= 0:
            await self._renewed.wait()
