"""Serves /metrics, /healthz, /readyz and /status. Losing this server never stops the worker.

Knows nothing of what the answers say: they are asked of what it is given.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

from worker.core.backoff import Backoff
from worker.errors import WorkerError
from worker.runtime.health import Health
from worker.runtime.statuspage.actions import Order
from worker.runtime.statuspage.frame import HEADERS as PAGE_HEADERS
from worker.runtime.statuspage.serve import Answer
from worker.settings import Listen

log = structlog.get_logger()

STATUS_SECONDS = 2.0
RETRIES = Backoff(first_seconds=1.0, most_seconds=30.0)
"""Another process has the port: perhaps the one this worker replaces, which will let go of it."""

FORM = "application/x-www-form-urlencoded"
LARGEST_FORM_BYTES = 16_384

_NO_STORE = {"Cache-Control": "no-store"}


class Page(Protocol):
    """The status page. Both are bounded in time by themselves."""

    async def show(self, query: Mapping[str, str]) -> str:
        """HTML for a query."""
        ...

    async def order(self, order: Order) -> Answer:
        """What became of a form that was sent."""
        ...


class HttpServer:
    """One listening socket.

    Args:
        listen: where.
        health: answers /healthz and /readyz.
        metrics: body and content type of /metrics for an Accept header; bounded in time by itself.
        status: JSON for /status.
        page: /status where a browser asks, or sends a form.
    """

    def __init__(
        self,
        listen: Listen,
        health: Health,
        metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        page: Page,
        *,
        retries: Backoff = RETRIES,
    ) -> None:
        self._listen = listen
        self._health = health
        self._metrics = metrics
        self._status = status
        self._page = page
        self._retries = retries
        self.port = 0
        """The port in use; 0 while there is none."""
        self.serving = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled; while the port is taken, try again now and then."""
        app = web.Application(client_max_size=LARGEST_FORM_BYTES)
        app.add_routes(
            [
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._get_healthz),
                web.get("/readyz", self._get_readyz),
                web.get("/status", self._get_status),
                web.post("/status", self._post_status),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
        await runner.setup()
        try:
            await self._bind(runner)
            await asyncio.get_running_loop().create_future()
        finally:
            self.serving.clear()
            await runner.cleanup()

    async def _bind(self, runner: web.AppRunner) -> None:
        failures = 0
        while not self.serving.is_set():
            site = web.TCPSite(runner, self._listen.host or None, self._listen.port)
            try:
                await site.start()
            except OSError as error:
                await site.stop()
                failures += 1
                self._unavailable(error, failures)
                await asyncio.sleep(self._retries.delay(failures, random.random()))  # noqa: S311
                continue
            self.port = runner.addresses[0][1]
            self.serving.set()
            log.info("http.listening", address=str(self._listen), port=self.port)

    def _unavailable(self, error: OSError, failures: int) -> None:
        log.error("http.port_unavailable", address=str(self._listen), error=str(error), failures=failures)

    async def _get_metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Vary": "Accept"} | _NO_STORE)

    async def _get_healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.not_alive())

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.not_ready())

    async def _get_status(self, request: web.Request) -> web.Response:
        # Browsers name it; `curl` and scripts, which name nothing or JSON, get JSON.
        if "text/html" in request.headers.get("Accept", ""):
            html = await self._page.show(request.query)
            return web.Response(
                text=html, content_type="text/html", headers={"Vary": "Accept", **PAGE_HEADERS}
            )
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                return _json(200, await self._status())
        except TimeoutError:
            return _json(503, {"error": f"no answer within {STATUS_SECONDS:g} s"})
        except WorkerError as error:
            return _json(503, {"error": str(error), "code": error.code})

    async def _post_status(self, request: web.Request) -> web.Response:
        if request.content_type != FORM:
            return _json(415, {"error": f"a form is sent as {FORM}"})
        try:
            sent = await request.post()
        except (UnicodeError, LookupError):
            return _json(400, {"error": "the form's text cannot be read"})
        order = Order(
            {name: value for name, value in sent.items() if isinstance(value, str)},
            origin=request.headers.get("Origin", ""),
            site=request.headers.get("Sec-Fetch-Site", ""),
            host=request.headers.get("Host", ""),
            remote=request.remote or "",
        )
        return _page(await self._page.order(order))


def _page(answer: Answer) -> web.Response:
    if answer.location:
        return web.Response(status=answer.status, headers={"Location": answer.location, **_NO_STORE})
    return web.Response(
        status=answer.status, text=answer.html, content_type="text/html", headers=PAGE_HEADERS
    )


def _verdict(reasons: Mapping[str, str]) -> web.Response:
    return _json(503 if reasons else 200, {"ok": not reasons, "reasons": reasons})


def _json(status: int, value: Mapping[str, Any]) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=_NO_STORE)
