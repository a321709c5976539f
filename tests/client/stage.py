"""Plays the worker for the client's tests, and loses answers between client and Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from worker.adapters.redis.connection import RedisOptions
from worker.client import Sent
from worker.core.keys import Keys
from worker.core.model import MessageKey, Outcome, Phase, Record, Routing, Verdict
from worker.core.reply import reply_fields
from worker.dev.embedded_redis import EmbeddedRedis

KEYS = Keys("{dispatch}")
WAIT_SECONDS = 20.0


class Stage:
    """A Redis, and a worker played by hand."""

    def __init__(self, server: EmbeddedRedis, admin: Any) -> None:
        self.server = server
        self.admin = admin
        self.options = RedisOptions(server.url)

    async def requests(self, stream: str = "requests") -> list[dict[bytes, bytes]]:
        return [fields for _, fields in await self.admin.xrange(KEYS.stream(stream))]

    async def publish(
        self,
        sent: Sent,
        kind: str,
        seq: int,
        *,
        verdict: Verdict | None = None,
        data: Mapping[str, Any] | None = None,
        job_id: str = "render/dispatch-1-2c85d768",
        **outcome: Any,
    ) -> str:
        """Add one reply entry, as the worker's scripts do. Returns its ID."""
        ended = None if verdict is None else Outcome(verdict, evidence=dict(data or {}), **outcome)
        record = Record(
            MessageKey(sent.stream, sent.id),
            Phase.RUNNING,
            token=sent.id,
            routing=Routing(job="render", namespace="default", correlation_id="c-1"),
            job_id=job_id,
            eval_id="9fff6706-94ac-ee81-8e86-6e56f88c3255" if job_id else "",
            attempt=1,
            outcome=ended,
        )
        fields = reply_fields(record, kind, at_ms=1_795_484_882_000, worker="w-1", data=data)
        flat = [*fields, b"seq", str(seq).encode()]
        entry_id: bytes = await self.admin.execute_command("XADD", sent.reply_stream, "*", *flat)
        return entry_id.decode()

    async def remember(self, sent: Sent, state: str, **fields: str) -> None:
        """Write the ledger hash."""
        stored = {"v": "1", "state": state, "job": "render", "namespace": "default"} | fields
        await self.admin.hset(KEYS.message(sent.key), mapping=stored)

    async def refusals(self, code: str) -> None:
        """Wait until the server has refused a command with this error."""
        await self._until(lambda: self._has_refused(code))

    async def readers(self, count: int) -> None:
        """Wait until exactly so many clients block in a read."""

        async def reached() -> bool:
            return bool((await self.admin.info("clients"))["blocked_clients"] == count)

        await self._until(reached)

    async def break_connections(self) -> None:
        """Cut every connection but our own."""
        await self.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _has_refused(self, code: str) -> bool:
        return f"errorstat_{code}" in await self.admin.info("errorstats")

    async def _until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await condition():  # noqa: ASYNC110 - the event is in another process
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def losing_answers(self, count: int) -> AsyncIterator[RedisOptions]:
        """Options that lead through a proxy: it breaks the connection instead of passing on the
        answers of the next `count` requests to send.
        """
        left = count
        serving: set[asyncio.Task[Any]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal left
            if task := asyncio.current_task():
                serving.add(task)
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            sending = False

            async def forward() -> None:
                nonlocal sending
                while data := await reader.read(65536):
                    sending = sending or b"XADD" in data
                    upstream_writer.write(data)

            forwarding = asyncio.create_task(forward())
            try:
                while data := await upstream_reader.read(65536):
                    if sending and left:
                        left -= 1
                        return
                    writer.write(data)
            finally:
                forwarding.cancel()
                upstream_writer.close()
                writer.close()

        proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        try:
            yield RedisOptions(f"redis://127.0.0.1:{port}")
        finally:
            proxy.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
