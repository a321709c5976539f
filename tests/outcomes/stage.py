"""One worker on a real Redis and a Nomad, and what it tells of each message.

Knows nothing of which Nomad it is, or of what a message should come to.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from worker.core.keys import Keys
from worker.core.reply import Reply, decode_reply
from worker.dev.embedded_redis import EmbeddedRedis
from worker.runtime.app import App
from worker.settings import load

KEYS = Keys("{dispatch}")
UP_SECONDS = 30.0
DOWN_SECONDS = 15.0
WAIT_SECONDS = 60.0
READ_ENTRIES = 5_000


@dataclass
class Message:
    """One request, and the replies to it so far."""

    id: str
    replies: list[Reply] = field(default_factory=list)
    told: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def said(self, kind: str, *, times: int = 1, seconds: float = WAIT_SECONDS) -> Reply:
        """Wait for the reply of a kind that comes as the `times`-th of its kind."""

        def found() -> list[Reply]:
            return [reply for reply in self.replies if reply.type == kind]

        try:
            async with asyncio.timeout(seconds), self.told:
                await self.told.wait_for(lambda: len(found()) >= times or self.ended)
        except TimeoutError:
            pytest.fail(f"no {kind} within {seconds:g} s, but {self.steps}")
        assert len(found()) >= times, f"no {kind} (no. {times}), but {self.steps}"
        return found()[times - 1]

    async def final(self, *, seconds: float = WAIT_SECONDS) -> Reply:
        return await self.said("result", seconds=seconds)

    @property
    def ended(self) -> bool:
        return any(reply.final for reply in self.replies)

    @property
    def steps(self) -> str:
        """The kinds of all replies in order: `accepted dispatched placed running result`."""
        return " ".join(reply.type for reply in self.replies)

    @property
    def child(self) -> str:
        """The dispatched job's ID, once it is known."""
        return next((reply.dispatched_job_id for reply in self.replies if reply.dispatched_job_id), "")


class Stage:
    """A running worker. Messages are sent and their replies gathered here."""

    def __init__(self, server: EmbeddedRedis, redis: Any, app: App) -> None:
        self.server = server
        self.redis = redis
        self.app = app
        self.messages: dict[str, Message] = {}

    async def send(self, job: str, *, meta: Mapping[str, str] | None = None, **fields: str) -> Message:
        """Add one request."""
        (message,) = await self.send_many([(job, meta or {})], **fields)
        return message

    async def send_many(self, jobs: list[tuple[str, Mapping[str, str]]], **fields: str) -> list[Message]:
        """Add requests: pairs of a job and its meta."""
        pipeline = self.redis.pipeline(transaction=False)
        for job, meta in jobs:
            more = {"meta": json.dumps(meta)} if meta else {}
            pipeline.xadd(KEYS.stream("requests"), {"job": job, **more, **fields})
        return [self._message(entry_id.decode()) for entry_id in await pipeline.execute()]

    async def finals(self, message: Message) -> list[Reply]:
        """All final replies to a message, by the reply stream itself."""
        entries = await self.redis.xrange(KEYS.replies)
        replies = [decode_reply(fields, entry_id.decode()) for entry_id, fields in entries]
        return [reply for reply in replies if reply.id == message.id and reply.final]

    async def dead_letters(self) -> dict[str, dict[str, str]]:
        """All dead letters, by the ID of their message."""
        entries = await self.redis.xrange(KEYS.dead)
        letters = [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]
        return {letter["dead_id"]: letter for letter in letters}

    async def pending(self) -> int:
        """Entries given to the worker and not settled."""
        return int((await self.redis.xpending(KEYS.stream("requests"), "workers"))["pending"])

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        text = (await self._get("/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in wanted))

    async def until(self, name: str, value: float, *, seconds: float = WAIT_SECONDS, **labels: str) -> None:
        """Wait until a metric has come to at least this value; it is looked at, for nobody announces it."""
        async with asyncio.timeout(seconds):
            while await self.metric(name, **labels) < value:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.05)

    async def gather(self) -> None:
        """Gather replies, for ever."""
        reader = Redis.from_url(self.server.url)
        last = "0"
        try:
            while True:
                answer: Any = await reader.xread({KEYS.replies: last}, count=READ_ENTRIES, block=500)
                for entry_id, fields in answer[0][1] if answer else ():
                    last = entry_id.decode()
                    reply = decode_reply(fields, last)
                    message = self._message(reply.id)
                    async with message.told:
                        message.replies.append(reply)
                        message.told.notify_all()
        finally:
            await reader.aclose()

    def _message(self, message_id: str) -> Message:
        return self.messages.setdefault(message_id, Message(message_id))

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient() as http:
            return await http.get(f"http://127.0.0.1:{self.app.http_port}{path}", timeout=5)


@asynccontextmanager
async def stage(nomad_address: str, **settings: str) -> AsyncIterator[Stage]:
    """A Redis and a worker on this Nomad, with more settings as environment variables."""
    async with EmbeddedRedis() as server:
        environment = {
            "REDIS_URL": server.url,
            "NOMAD_ADDR": nomad_address,
            "WORKER_HTTP_ADDR": "127.0.0.1:0",
            "WORKER_LOG_LEVEL": "warning",
            "WORKER_BLOCK_SECONDS": "0.1",
            **settings,
        }
        app = App(load(environment))
        redis = Redis.from_url(server.url)
        stage = Stage(server, redis, app)
        worker = asyncio.create_task(app.run(), name="worker")
        gathering = asyncio.create_task(stage.gather(), name="gather replies")
        try:
            await _first(app.ready.wait, worker)
            yield stage
        finally:
            app.stop()
            await asyncio.wait({worker}, timeout=DOWN_SECONDS)
            gathering.cancel()
            with suppress(asyncio.CancelledError):
                await gathering
            await redis.aclose()
            if not worker.done():
                worker.cancel()
                await asyncio.wait({worker})
        assert worker.result() == 0, "the worker failed; its log tells why"


async def _first(ready: Callable[[], Any], worker: "asyncio.Task[int]") -> None:
    waiting = asyncio.create_task(ready(), name="ready")
    await asyncio.wait({waiting, worker}, timeout=UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done(), "the worker did not become ready; its log tells why"
