"""A worker, a Nomad simulator and a Redis in three processes, for more jobs than one event loop should carry.

Measures the worker from outside: its connections as the simulator tells them, its memory and processor time
as Linux does.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis

from tests.outcomes.stage import KEYS
from worker.core.reply import Reply, decode_reply
from worker.dev.embedded_redis import EmbeddedRedis

START_SECONDS = 30.0
STOP_SECONDS = 30.0
NODES = 20


@dataclass
class Crowd:
    """What is asked of the three, and what they told so far."""

    redis: Any
    nomad: httpx.AsyncClient
    worker: asyncio.subprocess.Process
    told: Counter[str] = field(default_factory=Counter)
    """Replies so far, by type."""
    finals: dict[str, Reply] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)
    """Dispatched job IDs by message ID."""
    cuts: int = 0
    change: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def send(self, requests: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
        """Add requests, pairs of a job and its meta; returns their message IDs."""
        pipeline = self.redis.pipeline(transaction=False)
        for job, meta in requests:
            pipeline.xadd(KEYS.stream("requests"), {"job": job, "meta": json.dumps(meta)})
        return [entry_id.decode() for entry_id in await pipeline.execute()]

    async def until(self, kind: str, count: int, seconds: float) -> None:
        """Wait until this many replies of a type were told."""
        try:
            async with asyncio.timeout(seconds), self.change:
                await self.change.wait_for(lambda: self.told[kind] >= count)
        except TimeoutError:
            pytest.fail(f"not within {seconds:g} s: {count} {kind}, but {dict(self.told)}")

    async def stop_job(self, job_id: str) -> None:
        """As an operator does."""
        (await self.nomad.delete(f"/v1/job/{quote(job_id, safe='')}")).raise_for_status()

    async def dispatches(self) -> Counter[str]:
        """How many jobs Nomad made for each token."""
        log = (await self.nomad.get("/_simulator/log")).json()
        return Counter(entry["token"] for entry in log["dispatches"])

    async def gather(self) -> None:
        """Gather replies, for ever."""
        last = "0"
        while True:
            answer: Any = await self.redis.xread({KEYS.replies: last}, count=2_000, block=500)
            entries = answer[0][1] if answer else ()
            for entry_id, fields in entries:
                last = entry_id.decode()
                self._take(fields, last)
            async with self.change:
                self.change.notify_all()

    async def cut_streams(self, chance: random.Random, most_seconds: float) -> None:
        """Cut the event streams at random, for ever."""
        while True:
            await asyncio.sleep(chance.uniform(0.1, most_seconds))
            (await self.nomad.post("/_simulator/streams", json={"action": "close"})).raise_for_status()
            self.cuts += 1

    async def most_connections(self) -> int:
        """How many connections the worker had to Nomad at one time at most, as the simulator saw them."""
        told = (await self.nomad.get("/_simulator/log")).json()["connections"]
        return sum(most for agent, most in told.items() if agent.startswith("nomad-dispatch-worker/"))

    @property
    def cpu_seconds(self) -> float:
        """Processor time the worker has taken."""
        parts = Path(f"/proc/{self.worker.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mb(self) -> float:
        """The most memory the worker has held."""
        lines = Path(f"/proc/{self.worker.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def _take(self, fields: dict[bytes, bytes], entry_id: str) -> None:
        kind = fields[b"type"].decode()
        self.told[kind] += 1
        if kind == "dispatched":
            self.children[fields[b"id"].decode()] = fields[b"dispatched_job_id"].decode()
        elif kind == "result":
            reply = decode_reply(fields, entry_id)
            self.finals[reply.id] = reply


@asynccontextmanager
async def crowd(folder: Path, jobs: Sequence[dict[str, Any]], **settings: str) -> AsyncIterator[Crowd]:
    """All three, up and ready; the worker is told to stop at the end, and must leave in order."""
    files = folder / "jobs"
    files.mkdir()
    for job in jobs:
        (files / f"{job['ID']}.json").write_text(json.dumps(job))
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    simulator = await _started(
        "simulator", "--port", "0", "--nodes", str(NODES), "--jobs", str(files), environment=environment
    )
    try:
        address = await _address(simulator)
        async with EmbeddedRedis() as server:
            environment |= {
                "REDIS_URL": server.url,
                "NOMAD_ADDR": address,
                "WORKER_HTTP_ADDR": "127.0.0.1:0",
                "WORKER_LOG_LEVEL": "error",
                **settings,
            }
            worker = await _started("run", environment=environment)
            try:
                redis = Redis.from_url(server.url)
                async with httpx.AsyncClient(base_url=address, timeout=60) as nomad:
                    made = Crowd(redis, nomad, worker)
                    gathering = asyncio.create_task(made.gather(), name="gather")
                    try:
                        yield made
                    finally:
                        gathering.cancel()
                        await asyncio.wait({gathering})
                        await redis.aclose()
            finally:
                code = await _stopped(worker)
            assert code == 0, "the worker did not leave in order"
    finally:
        await _stopped(simulator)


async def _started(*arguments: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *arguments), stdout=asyncio.subprocess.PIPE, env=environment
    )


async def _address(simulator: asyncio.subprocess.Process) -> str:
    assert simulator.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        line = (await simulator.stdout.readline()).decode()
    return line.rpartition(" ")[2].strip()


async def _stopped(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
