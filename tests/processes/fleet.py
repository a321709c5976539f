"""Real worker processes on a real Redis and the simulator, to be killed, paused and stopped by tests."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from worker.core.keys import Keys
from worker.core.reply import Reply, decode_reply
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Simulator

KEYS = Keys("{dispatch}")
STREAM = KEYS.stream("requests")
READY_SECONDS = 30.0


async def until(fact: Callable[[], Awaitable[bool]], seconds: float, what: str) -> float:
    """Wait until something is so; returns how long it took. The look is repeated, for nobody announces it."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not await fact():
        if loop.time() - started > seconds:
            pytest.fail(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.02)
    return loop.time() - started


@dataclass
class WorkerProcess:
    """One `dispatch-worker run`."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    http: str

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def ended(self, seconds: float) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@dataclass
class Fleet:
    """What the tests ask and do."""

    server: EmbeddedRedis
    nomad: Simulator
    redis: Redis
    folder: Path
    environment: Mapping[str, str]
    workers: list[WorkerProcess] = field(default_factory=list)

    async def start(self, **settings: str) -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        name = f"w{len(self.workers) + 1}"
        port = await _free_port()
        log = self.folder / f"{name}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "REDIS_URL": self.server.url,
            "NOMAD_ADDR": self.nomad.address,
            "WORKER_NAME": name,
            "WORKER_HTTP_ADDR": f"127.0.0.1:{port}",
            **self.environment,
            **settings,
        }
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "run"), stdout=out, stderr=out, env=environment
            )
        worker = WorkerProcess(name, process, log, f"http://127.0.0.1:{port}")
        self.workers.append(worker)
        await until(lambda: self._ready(worker), READY_SECONDS, f"{name} is ready; see its log:\n{log}")
        return worker

    async def send(self, **fields: str | bytes) -> str:
        """Add one request; returns its message ID."""
        return (await self.redis.xadd(STREAM, dict(fields))).decode()

    async def replies(self) -> list[Reply]:
        """All replies so far."""
        entries = await self.redis.xrange(KEYS.replies)
        return [decode_reply(fields, entry_id.decode()) for entry_id, fields in entries]

    async def finals(self) -> list[Reply]:
        """All final replies so far."""
        return [reply for reply in await self.replies() if reply.final]

    async def final(self, message_id: str, seconds: float = 30) -> Reply:
        """Wait for one message's final reply."""
        return (await self.all_final([message_id], seconds))[0]

    async def all_final(self, message_ids: list[str], seconds: float) -> list[Reply]:
        """Wait until all these messages have a final reply."""
        found: dict[str, Reply] = {}

        async def all_there() -> bool:
            found.update({reply.id: reply for reply in await self.finals()})
            return set(message_ids) <= set(found)

        await until(all_there, seconds, f"{len(message_ids)} final replies")
        return [found[message_id] for message_id in message_ids]

    async def reply_of(self, message_id: str, kind: str, seconds: float = 15) -> float:
        """Wait for a reply of a kind to a message; returns how long it took."""

        async def there() -> bool:
            return any(reply.id == message_id and reply.type == kind for reply in await self.replies())

        return await until(there, seconds, f"a reply {kind} to {message_id}")

    async def owner(self, message_id: str) -> str:
        """Which worker holds a message."""
        owner = await self.redis.hget(f"{{dispatch}}:message:requests:{message_id}", "owner")
        return owner.decode() if owner else ""

    async def owned_by_other(self, message_id: str, than: str, seconds: float = 15) -> float:
        """Wait until another worker holds a message; returns how long it took."""

        async def moved() -> bool:
            return await self.owner(message_id) not in {"", than}

        return await until(moved, seconds, f"{message_id} is owned by another worker than {than}")

    async def pending(self) -> int:
        """Entries given to workers and not settled."""
        return int((await self.redis.xpending(STREAM, "workers"))["pending"])

    def children_by_token(self) -> Counter[str]:
        """How many jobs Nomad made for each token, by its own record."""
        return Counter(entry["token"] for entry in self.dispatched())

    async def holds(self) -> str:
        """Send a request for a job that runs until `release`; returns its message ID once it runs."""
        message_id = await self.send(job="held", meta=json.dumps({"file": str(self.folder / "release")}))
        await self.reply_of(message_id, "running")
        return message_id

    def release(self, exit_code: int = 0) -> None:
        """Let the held jobs end."""
        part = self.folder / "release.part"
        part.write_text(str(exit_code))
        part.rename(self.folder / "release")

    def dispatched(self) -> list[dict[str, Any]]:
        """Nomad's own record of every job it made, purged ones included."""
        return list(self.nomad.record.dispatches)

    async def _ready(self, worker: WorkerProcess) -> bool:
        if worker.process.returncode is not None:
            pytest.fail(f"{worker.name} ended:\n{worker.log.read_text()}")
        try:
            async with httpx.AsyncClient() as http:
                return (await http.get(f"{worker.http}/readyz", timeout=2)).is_success
        except httpx.TransportError:
            return False


async def _free_port() -> int:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


@asynccontextmanager
async def fleet(
    folder: Path, jobs: list[dict[str, Any]], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Fleet]:
    """A Redis and a Nomad without workers; workers started on them are killed at the end."""
    async with EmbeddedRedis() as server, Simulator(jobs=jobs) as nomad:
        redis = Redis.from_url(server.url)
        made = Fleet(server, nomad, redis, folder, environment or {})
        try:
            yield made
        finally:
            for worker in made.workers:
                if worker.process.returncode is None:
                    worker.resume()
                    worker.kill()
                    await worker.process.wait()
            await redis.aclose()
