"""A small HTTP server that answers what the test says and shows what it was asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    raw_path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Agent:
    """Stands for a Nomad agent. Unlike the simulator it can misbehave below HTTP's meaning."""

    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    handler: Handler | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client leaves a handler that still runs."""

    def answers(self, status: int = 200, text: str = "", headers: dict[str, str] | None = None) -> None:
        async def handler(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text=text, headers=headers)

        self.handler = handler

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked(request.method, request.raw_path, request.headers, await request.read()))
        assert self.handler is not None
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            self.gone.set()
            raise


@asynccontextmanager
async def running_agent(
    *, tls: ssl.SSLContext | None = None, unix: Path | None = None
) -> AsyncIterator[Agent]:
    """An agent on a free loopback port, or on a Unix socket."""
    agent = Agent()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{rest:.*}", agent.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        if unix is not None:
            await web.UnixSite(runner, unix).start()
            agent.address = f"unix://{unix}"
        else:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            port = runner.addresses[0][1]
            agent.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        yield agent
    finally:
        await runner.cleanup()
