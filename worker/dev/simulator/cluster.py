"""One simulated cluster as the HTTP routes see it: tables, loop, permissions, planned faults and the record.

Decides nothing; knows nothing of requests.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.dev.simulator.acl import Acl
from worker.dev.simulator.dispatching import DispatchRequest
from worker.dev.simulator.drivers import DRIVERS, Driver
from worker.dev.simulator.engine import Engine, Timings
from worker.dev.simulator.events import EventRing
from worker.dev.simulator.misbehave import Faults
from worker.dev.simulator.state import State


def new_uuid() -> str:
    """Return a random UUID in Nomad's form (no version bits)."""
    digits = secrets.token_hex(16)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Changes:
    """Wakes blocking queries after each write."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all who wait."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return at the next write, or after a time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._waiting.discard(future)


@dataclass
class Record:
    """What happened, for tests: accepted dispatches, calls by route, and connections by client."""

    dispatches: list[dict[str, Any]] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    connections: dict[str, int] = field(default_factory=dict)
    """By `User-Agent`, the most connections that were open at one time, event streams included."""

    def accepted(self, request: DispatchRequest, child_id: str, now: int) -> None:
        """Keep one new child; `at` in seconds since the epoch."""
        self.dispatches.append(
            {
                "job_id": child_id,
                "parent": request.job_id,
                "namespace": request.namespace,
                "token": request.token,
                "at": now / 1e9,
            }
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How the simulated servers behave."""

    heartbeat_seconds: float = 30.0
    event_buffer_size: int = 100
    max_connections_per_client: int = 100
    """Nomad's `http_max_conns_per_client`; event streams do not count. 0: no limit."""
    timings: Timings = field(default_factory=Timings)


class Cluster:
    """Everything behind the HTTP interface."""

    def __init__(
        self,
        directory: Path,
        options: Options | None = None,
        acl: Mapping[str, Any] | None = None,
        drivers: Mapping[str, Driver] = DRIVERS,
    ) -> None:
        self.options = options or Options()
        self.ring = EventRing(self.options.event_buffer_size)
        self.state = State(self.ring, new_uuid, speed=self.options.timings.task_speed)
        self.engine = Engine(self.state, directory, self.options.timings, drivers)
        self.acl = Acl.from_config(acl, self.engine.now())
        self.faults = Faults()
        self.record = Record()
        self.changes = Changes()
        self.state.on_write.append(self.changes.notify)

    def now(self) -> int:
        """Return the time in nanoseconds since the epoch."""
        return self.engine.now()
