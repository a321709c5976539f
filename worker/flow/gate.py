"""Whether Nomad should be asked to dispatch now: a circuit breaker shared by all messages.

Knows nothing of why a request failed beyond the error's `then`.
"""

import asyncio
import random

from worker.core.backoff import Backoff
from worker.errors import Then, WorkerError
from worker.ports import Clock

FAILURES_TO_CLOSE = 5
"""Failures in a row, over all messages, after which Nomad as a whole is taken to be unwell."""

TRIALS = Backoff(first_seconds=1.0, most_seconds=30.0)
"""Bounded at 30 s: the longest an operator waits to see a repaired cluster or token take effect."""


class Gate:
    """Closed, it lets one message through per trial; that one's success opens it again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._trials = 0
        self._next_trial = 0.0
        self._opened = asyncio.Event()
        self._opened.set()
        self.reason = ""
        """Code of the error that closed it; empty while open."""

    @property
    def is_open(self) -> bool:
        """Whether dispatches flow freely."""
        return self._opened.is_set()

    async def enter(self) -> None:
        """Wait until a dispatch may be tried."""
        while not self.is_open:
            wait = self._next_trial - self._clock.monotonic()
            if wait <= 0:
                self._schedule_trial()
                return
            try:
                async with asyncio.timeout(wait):
                    await self._opened.wait()
            except TimeoutError:
                continue

    def succeeded(self) -> None:
        """Nomad answered as it should, be it with a refusal of the request."""
        self._failures = self._trials = 0
        self.reason = ""
        self._opened.set()

    def failed(self, error: WorkerError) -> bool:
        """Nomad did not serve. Returns whether this failure closed the gate."""
        self._failures += 1
        if not self.is_open or (error.then is not Then.PAUSE and self._failures < FAILURES_TO_CLOSE):
            return False
        self.reason = error.code
        self._opened.clear()
        self._trials = 0
        self._schedule_trial()
        return True

    def _schedule_trial(self) -> None:
        self._trials += 1
        self._next_trial = self._clock.monotonic() + TRIALS.delay(self._trials, random.random())  # noqa: S311
