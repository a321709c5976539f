"""One soak: requests are sent while everything breaks; afterwards the data must tell that nothing went wrong.

The judgement is `tests.faults.checker`'s, out of Redis and Nomad's own record; no log and no worker is asked.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from tests.faults.checker import Told, gather, violations
from tests.faults.proxy import Proxy, proxied
from tests.faults.topologies import Pair, sentinel_pair
from tests.processes.fleet import Fleet, crew, fleet, until
from tests.processes.jobs import scripted
from tests.soak.chaos import Chaos
from tests.soak.plan import Plan, Request
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.client.scripts import Script
from worker.dev.simulator import Simulator

SETTINGS = {
    "WORKER_LEASE_SECONDS": "5",
    "WORKER_NOMAD_TIMEOUT_SECONDS": "1.5",
    "WORKER_BLOCK_SECONDS": "0.5",
    "WORKER_SWEEP_SECONDS": "5",
    "WORKER_EVENT_HEARTBEAT_SECONDS": "5",
    "WORKER_MAX_IN_FLIGHT": "300",
    "WORKER_DRAIN_SECONDS": "8",
    # The deaths here are no message's fault.
    "WORKER_MAX_TAKEOVERS": "100",
    # Every reply is looked at afterwards.
    "WORKER_REPLY_MAXLEN": "10000000",
}
SEND = Script.load("send")
OPEN_MOST = 600
"""Requests without a final reply, beyond which no more are sent: the faults are to meet all of them."""
CALM_SECONDS = 120.0
"""After the last fault: backoffs and a quarantine run out, whatever is left is worked off."""


@dataclass
class Report:
    """What became of a soak."""

    plan: Plan
    faults: list[str] = field(default_factory=list)
    """Sentences of the checker; empty: all is well."""
    seconds: float = 0.0
    finals: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    adoptions: list[float] = field(default_factory=list)
    workers: int = 0
    """How many processes there were, one after the other."""
    jobs: int = 0
    repeated: int = 0
    """Requests whose sending had to be repeated."""

    def __str__(self) -> str:
        plan = self.plan
        adopted = f"{len(self.adoptions)} timed adoptions"
        if self.adoptions:
            adopted += f", the slowest {max(self.adoptions):.1f} s"
        return "\n".join(
            [
                f"seed {plan.seed}, {plan.messages} messages, {plan.topology}: {self.seconds:.0f} s",
                f"  {self.finals} finals, {dict(self.verdicts.most_common())}, {self.jobs} jobs",
                f"  {self.workers} worker processes, {adopted}, {self.repeated} requests sent again",
                f"  {self.broken.total()} faults: {dict(self.broken.most_common())}",
                *(f"  NOT AS PROMISED: {fault}" for fault in self.faults[:20]),
            ]
        )


async def soak(plan: Plan, folder: Path, limit_seconds: float, tell: Callable[[str], None]) -> Report:
    """Run a plan.

    Args:
        plan: what to send and break.
        folder: for the workers' logs.
        limit_seconds: after which a soak that is not through counts as failed.
        tell: hears of each fault.
    """
    report = Report(plan)
    started = time.monotonic()
    async with _world(plan, folder) as (world, network, pair):
        await asyncio.gather(*(world.start() for _ in range(3)))
        chaos = Chaos(plan, world, network, pair, tell)
        producer = _Producer(world, confirm=pair is not None)
        async with asyncio.timeout(limit_seconds):
            async with chaos.at_work():
                for pause_seconds, burst in plan.bursts():
                    await asyncio.sleep(pause_seconds)
                    await producer.room(OPEN_MOST)
                    for request in burst:
                        await producer.send(request)
                # The faults go on until there is hardly anything left for them to hit.
                await producer.room(max(1, plan.messages // 20))
            tell("calm")
            await until(lambda: _settled(world), CALM_SECONDS, "nothing is pending and nothing unread")
        found = await gather(world, producer.sent)
        report.faults = violations(found)
        report.finals = sum(reply.final for reply in found.replies)
        report.verdicts = Counter(str(reply.verdict) for reply in found.replies if reply.final)
        report.jobs = len(found.children)
        report.broken, report.adoptions = chaos.done, chaos.adoptions
        report.workers, report.repeated = len(world.workers), producer.repeated
        late = [took for took in chaos.adoptions if took > 15]
        report.faults += [f"an adoption took {took:.1f} s" for took in late]
    report.seconds = time.monotonic() - started
    return report


async def _settled(world: Fleet) -> bool:
    await asyncio.sleep(0.2)
    with contextlib.suppress(RedisError):
        groups = await world.redis.xinfo_groups(world.stream)
        for group in groups:
            if group["name"] == b"workers" and not group["pending"]:
                # Not by its `lag`: a promoted replica may not know it.
                after = b"(" + group["last-delivered-id"]
                return not await world.redis.xrange(world.stream, after, "+", 1)
    return False


@dataclass
class _Producer:
    """Sends each request once, whatever happens to the answer, and counts what is open."""

    world: Fleet
    confirm: bool
    """Whether a replica must have a request for it to count as accepted."""
    sent: dict[str, Told] = field(default_factory=dict)
    repeated: int = 0
    _last: str = "0"
    _answered: set[str] = field(default_factory=set)

    async def send(self, request: Request) -> None:
        """Add the request under its number as idempotency key, again and again until that is certain."""
        world, key = self.world, f"{request.number}"
        keys = [world.stream, world.keys.idempotency("soak", key), world.keys.replies]
        words = [part for item in self._fields(request).items() for part in item]
        command = SEND.command(keys, [3_600_000, "requests", key, *words], whole=True)
        while True:
            pipeline = world.redis.pipeline(transaction=False)
            pipeline.execute_command(*command)
            if self.confirm:
                # A write of its own even where the script has nothing to add: WAIT counts from a write.
                pipeline.set(f"{world.keys.prefix}:soak", key)
                pipeline.wait(1, 1_000)
            try:
                answers = await pipeline.execute()
            except (RedisError, OSError, TimeoutError):
                answers = []
            if answers and (not self.confirm or answers[-1] >= 1):
                message_id = answers[0][0].decode().split(":")[1]
                self.sent[message_id] = request.told
                return
            self.repeated += 1
            await asyncio.sleep(0.1)

    def _fields(self, request: Request) -> dict[str, str | bytes]:
        if request.kind == "garbage":
            return {b"\xff".decode("latin-1"): b"\x00", "meta": "{"}
        meta = {"run_for": f"{request.run_seconds:g}s", "exit_code": str(request.told.exit_code or 0)}
        fields: dict[str, str | bytes] = {
            "job": "nowhere" if request.kind == "unknown" else "render",
            "meta": json.dumps(meta),
            "correlation_id": str(request.number),
        }
        return fields | ({"timeout_seconds": "1"} if request.kind == "late" else {})

    async def room(self, most: int) -> None:
        """Wait until at most so many requests are open.

        Told nothing new for a while, it reads from the start: after a failover there may be replies with
        smaller IDs than the last one read, which the former primary had given.
        """
        idle = 0
        while len(self.sent) - len(self._answered) > most:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                entries = await self.world.redis.xrange(self.world.keys.replies, f"({self._last}", "+", 2_000)
                for entry_id, fields in entries:
                    self._last = entry_id.decode()
                    if fields[b"final"] == b"1":
                        self._answered.add(fields[b"id"].decode())
                if entries:
                    idle = 0
                    continue
            idle += 1
            if idle % 15 == 0:
                self._last = "0"
            await asyncio.sleep(0.2)


@asynccontextmanager
async def _world(plan: Plan, folder: Path) -> AsyncIterator[tuple[Fleet, Proxy | None, Pair | None]]:
    jobs = [scripted("render")]
    if plan.topology == "standalone":
        # What was acknowledged is in the kernel's hands: a killed server comes back with all of it.
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        async with (
            fleet(folder, jobs, SETTINGS, server_args=durable) as world,
            proxied(world.server.port) as network,
        ):
            world.url = f"redis://127.0.0.1:{network.port}/0"
            yield world, network, None
        return
    async with sentinel_pair() as pair, Simulator(jobs=jobs) as nomad:
        redis = connect(RedisOptions(pair.url), Purpose.OPS)
        environment = SETTINGS | {"WORKER_DURABILITY": "replica"}
        try:
            async with crew(nomad, redis, pair.url, folder, environment) as world:
                yield world, None, pair
        finally:
            await redis.aclose()
