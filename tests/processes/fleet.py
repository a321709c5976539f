"""Real worker processes on a real Redis and the simulator, to be killed, paused and stopped by tests."""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from worker.core.keys import Keys
from worker.core.model import MessageKey
from worker.core.reply import Reply, decode_reply
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Simulator

KEYS = Keys("{dispatch}")
STREAM = KEYS.stream("requests")
READY_SECONDS = 40.0
ROOT = Path(__file__).resolve().parents[2]


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

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    @property
    def paused(self) -> bool:
        """Whether it is stopped by SIGSTOP, by whomever."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] in {"T", "t"}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def ended(self, seconds: float) -> int:
        """Wait for its end; returns the exit code, or minus the signal that ended it."""
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            pytest.fail(
                f"{self.name} did not end within {seconds:g} s; its log:\n{self.log.read_text()[-4000:]}"
            )

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Its log lines with this event so far."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask its own HTTP server."""
        async with httpx.AsyncClient() as http:
            return await http.get(f"{self.http}{path}", timeout=5, headers=headers)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over a metric's samples with these labels; 0 where there is none of a metric there is."""
        families = list(text_string_to_metric_families((await self.get("/metrics")).text))
        full = f"dispatch_worker_{name}"
        stem = re.sub("_(total|count|sum|bucket)$", "", full)
        if not {full, stem} & {family.name for family in families}:
            pytest.fail(f"there is no metric {full}")
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == full and labels.items() <= sample.labels.items()
        )

    async def not_ready(self) -> dict[str, str]:
        """Why it takes no new work; empty: it does."""
        reasons: dict[str, str] = (await self.get("/readyz")).json()["reasons"]
        return reasons


@dataclass
class Fleet:
    """What the tests ask and do."""

    nomad: Simulator
    redis: Any
    """A client of this test's own."""
    url: str
    """What the workers are given as REDIS_URL."""
    folder: Path
    environment: Mapping[str, str]
    keys: Keys = KEYS
    """Those of the workers' prefix."""
    workers: list[WorkerProcess] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    embedded: EmbeddedRedis | None = None

    @property
    def stream(self) -> str:
        """The request stream's key."""
        return self.keys.stream("requests")

    @property
    def server(self) -> EmbeddedRedis:
        """The one Redis, where there is just one."""
        assert self.embedded is not None
        return self.embedded

    async def start(
        self,
        *,
        program: Sequence[str] = ("-m", "worker", "run"),
        wait: bool = True,
        **settings: str,
    ) -> WorkerProcess:
        """Start a worker and, unless told otherwise, wait until it is ready."""
        name = f"w{next(self._numbers)}"
        port = await free_port()
        log = self.folder / f"{name}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "REDIS_URL": self.url,
            "NOMAD_ADDR": self.nomad.address,
            "WORKER_NAME": name,
            "WORKER_PREFIX": self.keys.prefix,
            "WORKER_HTTP_ADDR": f"127.0.0.1:{port}",
            **self.environment,
            **settings,
        }
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *program, stdout=out, stderr=out, env=environment, cwd=ROOT
            )
        address = settings.get("WORKER_HTTP_ADDR", f"127.0.0.1:{port}")
        worker = WorkerProcess(settings.get("WORKER_NAME", name), process, log, f"http://{address}")
        self.workers.append(worker)
        if wait:
            await self.ready(worker)
        return worker

    async def ready(self, worker: WorkerProcess) -> float:
        """Wait until a worker is ready; returns how long it took."""
        what = f"{worker.name} is ready; see its log:\n{worker.log}"
        return await until(lambda: self._ready(worker), READY_SECONDS, what)

    async def send(self, **fields: str | bytes) -> str:
        """Add one request; returns its message ID."""
        message_id: bytes = await self.redis.xadd(self.stream, dict(fields))
        return message_id.decode()

    async def replies(self) -> list[Reply]:
        """All replies so far."""
        entries = await self.redis.xrange(self.keys.replies)
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
        owner = await self.redis.hget(self.keys.message(MessageKey("requests", message_id)), "owner")
        return owner.decode() if owner else ""

    async def owned_by_other(self, message_id: str, than: str, seconds: float = 15) -> float:
        """Wait until another worker holds a message; returns how long it took."""

        async def moved() -> bool:
            return await self.owner(message_id) not in {"", than}

        return await until(moved, seconds, f"{message_id} is owned by another worker than {than}")

    async def pending(self) -> int:
        """Entries given to workers and not settled."""
        return int((await self.redis.xpending(self.stream, "workers"))["pending"])

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


async def free_port() -> int:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


@asynccontextmanager
async def crew(
    nomad: Simulator,
    redis: Any,
    url: str,
    folder: Path,
    environment: Mapping[str, str],
    keys: Keys = KEYS,
) -> AsyncIterator[Fleet]:
    """A fleet on a Redis and a Nomad that are there already; its workers are killed at the end."""
    made = Fleet(nomad, redis, url, folder, environment, keys)
    try:
        yield made
    finally:
        for worker in made.workers:
            if worker.running:
                worker.resume()
                worker.kill()
                await worker.process.wait()


@asynccontextmanager
async def fleet(
    folder: Path,
    jobs: list[dict[str, Any]],
    environment: Mapping[str, str] | None = None,
    *,
    server_args: Sequence[str] = (),
    **nomad_options: Any,
) -> AsyncIterator[Fleet]:
    """A Redis and a Nomad without workers; workers started on them are killed at the end.

    Args:
        folder: for logs and files.
        jobs: job specifications in the API's shape.
        environment: settings of every worker.
        server_args: of the Redis server.
        **nomad_options: as of `Simulator`.
    """
    async with EmbeddedRedis(args=server_args) as server, Simulator(jobs=jobs, **nomad_options) as nomad:
        # Connections that a restart of the server broke are no fault of the test's.
        redis = Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.05), 5))
        async with crew(nomad, redis, server.url, folder, environment or {}) as made:
            made.embedded = server
            yield made
        await redis.aclose()
