"""Breaks workers, Redis and Nomad as a plan says, and makes each thing good again.

Knows nothing of messages. What it did is in its journal; when it is told to stop, all is made good.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from tests.faults.proxy import Proxy
from tests.faults.topologies import Pair
from tests.processes.fleet import Fleet, WorkerProcess, until
from tests.soak.plan import Fault, Plan

ADOPTION_SECONDS = 15.0
STOP_SECONDS = 40.0
LEASE_SECONDS = 5.0
"""As in `soak.SETTINGS`."""


@dataclass
class Chaos:
    """All lanes at work on one world."""

    plan: Plan
    world: Fleet
    network: Proxy | None
    """Between the workers and a standalone Redis."""
    pair: Pair | None
    tell: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    """Faults by action."""
    adoptions: list[float] = field(default_factory=list)
    """Seconds from a SIGKILL until nothing was held by the dead worker any more."""
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _spared: set[str] = field(default_factory=set)
    """Workers that a lane is at work on."""
    _redis_is_fine: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while Redis is broken, and while an adoption is timed."""
    _workers_are_fine: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an adoption is timed, and shortly by whoever is about to hit another worker."""

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Break things until the block is over, then make everything good."""
        async with asyncio.TaskGroup() as lanes:
            for lane in self.plan.lanes:
                lanes.create_task(self._lane(lane), name=lane)
            try:
                yield
            finally:
                self._over.set()
        self.world.nomad.faults.clear()

    async def _lane(self, lane: str) -> None:
        for fault in self.plan.faults(lane):
            await self._wait(fault.after_seconds)
            if self._over.is_set():
                return
            self.tell(str(fault))
            self.done[fault.action] += 1
            match lane.partition(".")[0]:
                case "workers":
                    await self._worker(fault)
                case "redis":
                    async with self._redis_is_fine:
                        await self._redis(fault)
                case _:
                    await self._nomad(fault)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until all is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    # Workers

    async def _worker(self, fault: Fault) -> None:
        if fault.action != "kill_and_time":
            async with self._workers_are_fine:
                pass
        fit = [worker for worker in self.world.workers if worker.running and worker.name not in self._spared]
        if len(fit) < 2:
            return  # one is always left to carry on
        victim = fit[int(fault.dice * len(fit))]
        self._spared.add(victim.name)
        try:
            await self._hit(victim, fault)
        finally:
            self._spared.discard(victim.name)

    async def _hit(self, victim: WorkerProcess, fault: Fault) -> None:
        match fault.action:
            case "kill":
                victim.kill()
                await victim.ended(5)
                await self._wait(fault.seconds)
                await self.world.start(wait=False)
            case "kill_and_time":
                async with self._redis_is_fine, self._workers_are_fine:
                    await self._time_adoption(victim)
                await self.world.start(wait=False)
            case "pause" | "nap":
                victim.pause()
                await self._wait(fault.seconds if fault.action == "pause" else fault.seconds / 9)
                victim.resume()
            case _:
                await self.world.start(wait=False)  # a rolling upgrade: the new one comes first
                victim.terminate()
                code = await victim.ended(STOP_SECONDS)
                # One that was only just starting had no handler for the signal yet, and nothing in hand.
                expected = {0} if victim.log.stat().st_size else {0, -signal.SIGTERM}
                assert code in expected, f"{victim.name} ended with {code} on SIGTERM"

    async def _time_adoption(self, victim: WorkerProcess) -> None:
        # The promise is another replica's, so one must be there, and have been for a while.
        await until(lambda: self._another_is_steady(victim), 60, "another worker has a lease for a while")
        victim.kill()
        await victim.ended(5)
        took = await until(
            lambda: self._holds_nothing(victim.name),
            ADOPTION_SECONDS + 5,
            f"what {victim.name} held is adopted",
        )
        self.adoptions.append(took)
        self.tell(f"{victim.name}'s messages were adopted after {took:.1f} s")

    async def _another_is_steady(self, victim: WorkerProcess) -> bool:
        seconds, _ = await self.world.redis.time()
        for worker in self.world.workers:
            if worker is victim or not worker.running or worker.paused:
                continue
            found = await self.world.redis.hmget(
                self.world.keys.worker(worker.name), "steady_since", "seen_at"
            )
            since, seen = (int(value or 0) / 1000 for value in found)
            if 0 < since < seconds - LEASE_SECONDS and seen > seconds - LEASE_SECONDS / 2:
                return True
        return False

    async def _holds_nothing(self, name: str) -> bool:
        await asyncio.sleep(0.1)
        summary = await self.world.redis.xpending(self.world.stream, "workers")
        return name.encode() not in {consumer["name"] for consumer in summary["consumers"] or []}

    # Redis

    async def _redis(self, fault: Fault) -> None:
        if self.pair is not None:
            await self._failover(self.pair, fault)
            return
        server, network = self.world.server, self.network
        assert network is not None
        match fault.action:
            case "restart":
                await server.kill()
                await self._wait(fault.seconds)
                await server.start()
            case "freeze":
                server.pause()
                await self._wait(fault.seconds)
                server.resume()
            case "cut":
                network.cut()
            case "half_open":
                network.half_open()
            case "black_hole":
                network.swallow = True
                await self._wait(fault.seconds)
                network.swallow = False
                network.cut()
            case _:
                network.delay_seconds = 0.02 + fault.dice * 0.1
                await self._wait(fault.seconds)
                network.delay_seconds = 0.0

    async def _failover(self, pair: Pair, fault: Fault) -> None:
        old, other = await pair.primary(), await pair.replica()
        match fault.action:
            case "primary_killed":
                await old.kill()
                await pair.other_than(old)
                # Not before: it comes back empty, and must not be taken for the primary.
                await old.start()
            case "ordered_failover":
                with contextlib.suppress(RedisError):  # it refuses while another is under way
                    await pair.fail_over()
                    await pair.other_than(old)
            case "freeze":
                old.pause()
                await self._wait(fault.seconds)
                old.resume()
            case _:
                other.pause()
                await self._wait(fault.seconds)
                other.resume()
        await pair.replicated()

    # Nomad

    async def _nomad(self, fault: Fault) -> None:
        faults, hit = self.world.nomad.faults, 0.3 + 0.7 * fault.dice
        planned = []
        async with AsyncExitStack() as good_again:
            match fault.action:
                case "dispatch_500":
                    planned.append(faults.add("dispatch", "respond", text="rpc error: EOF", probability=hit))
                case "dispatch_429":
                    text = (
                        "Your IP is issuing too many concurrent connections, please rate limit your calls\n"
                    )
                    planned.append(faults.add("dispatch", "respond", status=429, text=text, probability=hit))
                case "all_500":
                    planned.append(faults.add("*", "respond", text="rpc error: EOF", probability=hit))
                case "lookups_fail":
                    planned.append(faults.add("job*", "respond", text="rpc error: EOF", probability=hit))
                case "lost_answers":
                    planned.append(faults.add("dispatch", "lose_answer", probability=hit))
                case "dropped":
                    planned.append(faults.add("*", "drop", probability=hit / 2))
                case "late_answers":
                    seconds = 0.2 + 2.5 * fault.dice
                    planned.append(faults.add("dispatch", "late_answer", seconds=seconds, probability=0.5))
                case "refused":
                    await self._refuse(good_again)
                case "no_leader":
                    faults.leaderless_seconds = 0.1
                    good_again.callback(setattr, faults, "leaderless_seconds", None)
                case "phantoms":
                    faults.phantoms = True
                    good_again.callback(setattr, faults, "phantoms", False)  # noqa: FBT003
                case "streams_cut":
                    faults.close_streams()
                case "streams_muted":
                    faults.mute_streams()
                    good_again.callback(faults.close_streams)
                case "streams_short":
                    faults.stream_life_seconds = 1.0
                    good_again.callback(setattr, faults, "stream_life_seconds", None)
            await self._wait(fault.seconds)
            for one in planned:
                faults.remove(one.id)

    async def _refuse(self, good_again: AsyncExitStack) -> None:
        """Two lanes may want it at once: the second finds nothing to stop."""
        if "nomad" in self._spared:
            return
        self._spared.add("nomad")
        await self.world.nomad.stop_server()

        async def back() -> None:
            await self.world.nomad.start_server()
            self._spared.discard("nomad")

        good_again.push_async_callback(back)
