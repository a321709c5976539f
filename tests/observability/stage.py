"""A whole stack under load."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from redis.asyncio import Redis

from worker.client import DispatchClient, Request
from worker.core.keys import Keys
from worker.dev.demo_jobs import demo_jobs
from worker.dev.simulator import Simulator
from worker.dev.stack import DevStack

KEYS = Keys("{dispatch}")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SOON = 30.0


@dataclass
class Stage:
    """A stack, and one who sends requests to it."""

    stack: DevStack
    client: DispatchClient
    redis: Any

    async def load(self) -> list[str]:
        """Requests of every kind; waits for the final replies of those that end. Returns the message IDs."""
        ending = [
            Request("demo-render", correlation_id="order-17", traceparent=TRACEPARENT),
            Request("demo-render", meta={"code": "3"}),
            Request("demo-encode", payload=b'{"input": "clip.mp4"}', meta={"tenant": "acme"}),
            Request("demo-encode", payload=b"{}"),
            Request("demo-nowhere"),
            Request("demo-flaky"),
            Request("demo-render", detach=True),
            Request("demo-render", deadline_ms=0),
            Request("demo-render", meta={"who": "ada"}),
        ]
        sent = [await self.client.send(request) for request in ending]
        await self.redis.xadd(
            KEYS.stream("requests"), {b"meta": b"\xff", b"job": b"<script>alert(1)</script>"}
        )
        await asyncio.gather(*(self.client.wait(one, timeout=SOON) for one in sent))
        return [one.id for one in sent]

    async def hold(self, number: int = 3) -> list[str]:
        """Jobs that run for as long as the test does."""
        sent = [
            await self.client.send(Request("demo-render", meta={"seconds": "600"})) for _ in range(number)
        ]
        for one in sent:
            await self._running(one.id)
        return [one.id for one in sent]

    async def worker_ends(self) -> None:
        """The worker leaves, and its addresses with it."""
        assert self.stack._app is not None
        self.stack._app.stop()
        await self.stack.ended()

    async def get(self, path: str, accept: str = "*/*") -> httpx.Response:
        """What the worker serves."""
        async with httpx.AsyncClient(timeout=SOON) as http:
            return await http.get(self.stack.http_address + path, headers={"Accept": accept})

    async def _running(self, message_id: str) -> None:
        await until(lambda: self._shown(message_id, "running"), SOON, f"{message_id} is running")

    async def _shown(self, message_id: str, step: str) -> bool:
        messages = (await self.get("/status")).json()["messages"]
        return any(one["id"] == message_id and one["step"] == step for one in messages)


async def until(fact: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Wait until something is so, looking again and again: of what is outside nobody tells when it is."""
    try:
        async with asyncio.timeout(seconds):
            while not await fact():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.1)
    except TimeoutError:
        message = f"not within {seconds:g} s: {what}"
        raise AssertionError(message) from None


@asynccontextmanager
async def stage(
    settings: Mapping[str, str] | None = None, *, nomad: Simulator | None = None
) -> AsyncIterator[Stage]:
    """Redis, Nomad simulator and one worker, with jobs to run."""
    quiet = {"WORKER_LOG_LEVEL": "error", **(settings or {})}
    async with DevStack(demo_jobs(), settings=quiet, nomad=nomad) as stack, stack.client() as client:
        redis = Redis.from_url(stack.redis.url)
        try:
            yield Stage(stack, client, redis)
        finally:
            await redis.aclose()
