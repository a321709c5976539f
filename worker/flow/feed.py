"""Keeps what is known of the children fresh: one event stream per place, and a sweep that is the truth.

Events only make it fast. Nomad drops events silently, so every connection, and every so often all the same,
is followed by a sweep: whatever is not among the living is read.
"""

import asyncio
import random
from collections import defaultdict
from contextlib import aclosing

import structlog

from worker.core.backoff import Backoff
from worker.core.frames import Frame
from worker.core.model import Place
from worker.errors import FeedLost, FeedRefused, NomadDenied, NomadUnavailable
from worker.flow.children import Child, Children
from worker.flow.instruments import Instruments
from worker.ports import Clock, Nomad

log = structlog.get_logger()

RECONNECTS = Backoff(first_seconds=0.2, most_seconds=15.0)
"""Without a bound on their number: the sweep carries on meanwhile."""
SPREAD_SECONDS = 2.0
"""Over which the reads that one sweep asks for are spread."""


class Feed:
    """One place's event stream and sweep. `follow` and `sweep_often` are two loops with one owner."""

    def __init__(
        self,
        nomad: Nomad,
        children: Children,
        clock: Clock,
        instruments: Instruments,
        place: Place,
        *,
        sweep_seconds: float,
    ) -> None:
        self._nomad = nomad
        self._children = children
        self._clock = clock
        self._instruments = instruments
        self._place = place
        self._sweep_seconds = sweep_seconds
        self._sweep_wanted = asyncio.Event()
        self._index = 0
        self._failures = 0
        self.connected = False
        self.name = "/".join(part for part in place if part)

    async def follow(self) -> None:
        """Hold the event stream open, for ever."""
        while True:
            try:
                await self._connection()
            except (FeedRefused, FeedLost, NomadUnavailable, NomadDenied) as error:
                self._failures += 1
                log.warning("feed.lost", code=error.code, error=str(error), failures=self._failures)
                self._instruments.feed_lost(self._place, error.code)
            finally:
                self.connected = False
            await self._clock.sleep(RECONNECTS.delay(max(1, self._failures), random.random()))  # noqa: S311

    async def sweep_often(self) -> None:
        """Sweep after every connection and at least once per period, for ever."""
        while True:
            jittered = self._sweep_seconds * random.uniform(0.8, 1.2)  # noqa: S311
            try:
                async with asyncio.timeout(jittered):
                    await self._sweep_wanted.wait()
            except TimeoutError:
                pass
            self._sweep_wanted.clear()
            try:
                await self.sweep()
            except (NomadUnavailable, NomadDenied) as error:
                log.warning("sweep.failed", code=error.code, error=str(error))
                await self._clock.sleep(RECONNECTS.delay(3, random.random()))  # noqa: S311
                self._sweep_wanted.set()

    def sweep_soon(self) -> None:
        """Somebody knows of a job whose events may have been missed."""
        self._sweep_wanted.set()

    async def sweep(self) -> None:
        """Compare what is held with what Nomad lists as alive; have the rest read.

        Raises:
            NomadUnavailable, NomadDenied.
        """
        by_parent = defaultdict[str, list[Child]](list)
        for child in self._children.of(self._place):
            by_parent[child.parent].append(child)
        ended = 0
        for parent, children in by_parent.items():
            try:
                live = await self._nomad.live_children(self._place, parent)
            except NomadDenied:
                # Without list-jobs there is no list to compare with: each is read by itself.
                live = {}
            now = self._clock.monotonic()
            for child in children:
                living = live.get(child.job_id)
                if living is None:
                    ended += 1
                elif child.running and not living.waits:
                    # All that is still to come of it is its end, which the list tells too.
                    continue
                elif living.changed_at <= max(child.known_index, child.listed_at):
                    continue
                child.listed_at = living.changed_at if living is not None else 0
                child.read_by(now + random.uniform(0, SPREAD_SECONDS))  # noqa: S311
        self._instruments.swept(ended)

    async def _connection(self) -> None:
        wanted = self._children.wanted(self._place)
        async with aclosing(self._nomad.events(self._place, self._index, wanted)) as arrivals:
            async for frames in arrivals:
                if not self.connected:
                    self.connected = True
                    self._failures = 0
                    self._sweep_wanted.set()
                    self._instruments.feed_opened(self._place)
                    log.info("feed.connected", namespace=self._place.namespace, index=self._index)
                telling = [frame for frame in frames if not frame.heartbeat]
                self._instruments.feed_read(self._place, len(frames), len(frames) - len(telling))
                for frame in telling:
                    self._apply(frame)

    def _apply(self, frame: Frame) -> None:
        if frame.index < self._index or frame.incomplete:
            # The servers lost their state or were restored, or a line was skipped: trust the list.
            log.warning("feed.gap", index=frame.index, last_index=self._index)
            self._sweep_wanted.set()
        if 0 < frame.index < self._index:
            self._unlearn(frame.index)
        if frame.index:
            self._index = frame.index
        self._children.apply(self._place, frame)

    def _unlearn(self, index: int) -> None:
        now = self._clock.monotonic()
        for child in self._children.unlearn(self._place, index):
            child.read_by(now + random.uniform(0, SPREAD_SECONDS))  # noqa: S311
