"""The real clock: Redis's wall time as last heard of, and a monotonic time that counts suspension.

Decides nothing.
"""

import asyncio
import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""CLOCK_MONOTONIC stands still while a virtual machine is suspended, and a lease does not."""


class SystemClock:
    """Implements `ports.Clock`. Until the first `heard`, wall time is the host's own."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - self.monotonic() * 1000

    def heard(self, redis_ms: int, sent_at: float) -> None:
        """Redis said `redis_ms` in answer to a request sent at `sent_at` (monotonic seconds)."""
        self._offset_ms = redis_ms - sent_at * 1000

    def now_ms(self) -> int:
        """See `ports.Clock.now_ms`."""
        return int(self.monotonic() * 1000 + self._offset_ms)

    def monotonic(self) -> float:
        """See `ports.Clock.monotonic`."""
        return time.clock_gettime(_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """See `ports.Clock.sleep`."""
        if seconds > 0:
            await asyncio.sleep(seconds)
