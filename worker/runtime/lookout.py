"""Asks Nomad now and then for what no event tells: when the token ends, and how many children each job has.

Decides nothing; what it finds goes into metrics. A token that may not ask leaves a gauge out, nothing more.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import structlog

from worker.adapters.nomad.client import NomadClient
from worker.core.instants import parse_rfc3339
from worker.core.model import Place
from worker.errors import WorkerError
from worker.runtime.metrics import NAMED_JOBS, Metrics

log = structlog.get_logger()

LOOK_SECONDS = 60.0


class Lookout:
    """One loop with one owner, the task tree."""

    def __init__(self, nomad: NomadClient, metrics: Metrics, places: Iterable[Place]) -> None:
        self._nomad = nomad
        self._metrics = metrics
        self._places = tuple(places)

    async def run(self) -> None:
        """Look at once, then about once a minute, for ever."""
        while True:
            await self._careful(self.look_at_jobs)
            await self._careful(self.look_at_token)
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

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
            raise
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
