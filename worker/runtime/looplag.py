"""How long this process's event loop takes to come round: what it adds itself to every wait for others.

Decides nothing about what to make of it.
"""

from worker.ports import Clock

EVERY_SECONDS = 0.02
SHARE = 0.1
"""Of the newest look in the mean: a fifth of a second or so counts."""


class LoopLag:
    """Sleeps, and looks how late it is woken."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.round_seconds = 0.0
        """How long a round of the loop takes, lately: a sleeper is woken after half a round on average."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            due = self._clock.monotonic() + EVERY_SECONDS
            await self._clock.sleep(EVERY_SECONDS)
            late = max(0.0, self._clock.monotonic() - due)
            self.round_seconds += (2 * late - self.round_seconds) * SHARE
