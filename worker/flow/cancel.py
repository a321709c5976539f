"""Hears of orders to cancel messages and passes them on to those in this worker's hands.

Knows nothing of what cancelling means for a message: the ledger holds the order, the pipeline carries it out.
"""

import random
from collections.abc import Callable

import structlog

from worker.core.backoff import Backoff
from worker.errors import RedisUnavailable
from worker.flow.pipeline import Pipeline
from worker.ports import Cancels, Clock

log = structlog.get_logger()

RETRIES = Backoff(first_seconds=0.1, most_seconds=5.0)
CHECK_SECONDS = 10.0
"""A wake-up can be missed, by a message that was just changing hands: the list of open orders cannot."""


class CancelFeed:
    """One loop: a blocking read that wakes up at once, and now and then a look at all open orders."""

    def __init__(
        self,
        cancels: Cancels,
        pipeline: Pipeline,
        clock: Clock,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._heard = heard
        """Told of new orders: what they mean may wait in the queue."""
        self._cancels = cancels
        self._pipeline = pipeline
        self._clock = clock

    async def run(self, tick: Callable[[], None]) -> None:
        """Pass orders on, for ever; `tick` on every round, so that a stalled loop is noticed."""
        failures = 0
        next_check = self._clock.monotonic()
        while True:
            tick()
            try:
                if self._clock.monotonic() >= next_check:
                    ordered = await self._cancels.open()
                    next_check = self._clock.monotonic() + CHECK_SECONDS
                else:
                    ordered = await self._cancels.listen()
            except RedisUnavailable as error:
                failures += 1
                next_check = self._clock.monotonic()
                log.warning("cancels.read_failed", code=error.code, error=str(error), failures=failures)
                await self._clock.sleep(RETRIES.delay(failures, random.random()))  # noqa: S311
                continue
            failures = 0
            for key in ordered:
                self._pipeline.cancel(key)
            if ordered:
                self._heard()
