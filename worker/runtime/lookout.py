"""Asks Nomad now and then for what no event tells: what waits there, the children per job, the token's end.

Decides nothing; what it finds goes into metrics and presses on the pace. A token that may not ask leaves a
gauge out, nothing more.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import structlog

from worker.adapters.nomad.client import NomadClient
from worker.core.instants import parse_rfc3339
from worker.core.model import Place
from worker.core.pace import pressure
from worker.errors import WorkerError
from worker.runtime.metrics import NAMED_JOBS, Metrics

log = structlog.get_logger()

LOOK_SECONDS = 60.0
WAITING_SECONDS = 10.0
"""Between two looks at what waits: it is to slow dispatches down before thousands more wait."""
CHILDREN_EASED, CHILDREN_MOST = 5_000, 50_000
"""Dispatched jobs of one job: from the one number on dispatches slow down, at the other one goes at a time.
With a token, one agent was seen to accept 300 a second at a few hundred children and 130 at 10,000."""


class Lookout:
    """One loop with one owner, the task tree."""

    def __init__(
        self,
        nomad: NomadClient,
        metrics: Metrics,
        places: Iterable[Place],
        press: Callable[[float, float], None] = lambda _evaluations, _children: None,
        *,
        waiting_limit: int = 0,
    ) -> None:
        self._nomad = nomad
        self._metrics = metrics
        self._places = tuple(places)
        self._press = press
        self._waiting_limit = waiting_limit
        self._evaluations, self._children = 0.0, 0.0
        """How hard each presses, from 0 to 1."""

    async def run(self) -> None:
        """Look at once, then about once a minute, for ever; at what waits in Nomad more often."""
        while True:
            await self._careful(self.look_at_jobs)
            await self._careful(self.look_at_token)
            for _ in range(int(LOOK_SECONDS / WAITING_SECONDS)):
                if self._waiting_limit:
                    await self._careful(self.look_at_evaluations)
                await asyncio.sleep(WAITING_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def look_at_evaluations(self) -> None:
        """Count what Nomad has pending and blocked.

        Raises:
            NomadUnavailable, NomadDenied, NomadRefused: nothing presses until the next look.
        """
        count: int | None = None
        self._evaluations = 0.0
        try:
            count = sum([await self._nomad.open_evaluations(place) for place in self._places])
            self._evaluations = pressure(count, self._waiting_limit // 2, self._waiting_limit)
        finally:
            self._metrics.open_evaluations(count)
            self._press(self._evaluations, self._children)

    async def look_at_jobs(self) -> None:
        """Count the children of every parameterized job, and give the job a label before its first dispatch.

        Raises:
            NomadUnavailable, NomadDenied: the gauge is left out until the next look.
        """
        children = Counter[str]()
        try:
            for place in self._places:
                for parent in await self._nomad.parents(place):
                    counts = parent.children
                    children[parent.id] += counts.pending + counts.running + counts.dead
        except WorkerError:
            self._metrics.children(None)
            children.clear()
            raise
        finally:
            most = max(children.values(), default=0)
            self._children = pressure(most, CHILDREN_EASED, CHILDREN_MOST)
            self._press(self._evaluations, self._children)
        if len(children) <= NAMED_JOBS:
            # With more of them the labels are for those that are dispatched.
            for job in children:
                self._metrics.name_job(job)
        self._metrics.children(children)

    async def look_at_token(self) -> None:
        """Tell when the token ends.

        Raises:
            NomadUnavailable: what was known stays, since the token did not change.
        """
        token = await self._nomad.token_self()
        expires = token.expiration_time if token else None
        # Nomad writes the year 1 for a token without an end.
        ends = 0 if not expires or expires.startswith("0001-") else parse_rfc3339(expires) / 1000
        self._metrics.token_expires(ends)

    async def _careful(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except (WorkerError, ValueError) as error:
            log.debug("lookout.unanswered", code=getattr(error, "code", ""), error=str(error))
