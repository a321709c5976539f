"""What probes and Prometheus see, with Redis there or not, and with the port taken or free."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest

from worker.core.backlog import Backlog, StreamBacklog
from worker.core.backoff import Backoff
from worker.errors import RedisUnavailable
from worker.runtime import http
from worker.runtime import metrics as metrics_module
from worker.runtime.health import Health
from worker.runtime.http import HttpServer
from worker.runtime.metrics import Metrics
from worker.runtime.statuspage.actions import Order
from worker.runtime.statuspage.serve import Answer
from worker.settings import Listen

pytestmark = pytest.mark.anyio

SOON = 5.0


class Shared:
    """Redis as the probe sees it."""

    def __init__(self) -> None:
        self.backlog = Backlog(
            {"requests": StreamBacklog(lag=7, pending=2, oldest_pending_seconds=1.5)}, 1, 3
        )
        self.down = False
        self.hanging = False
        self.ordered: list[Order] = []

    async def read(self) -> Backlog:
        if self.hanging:
            await asyncio.Event().wait()
        if self.down:
            message = "connection refused"
            raise RedisUnavailable(message)
        return self.backlog

    async def status(self) -> Mapping[str, Any]:
        return {"workers": (await self.read()).workers}

    async def show(self, query: Mapping[str, str]) -> str:
        return f"<p>{sorted(query)}</p>"

    async def order(self, order: Order) -> Answer:
        self.ordered.append(order)
        return Answer(303, location="/status?told=done") if order.fields else Answer(403, "<p>no</p>")


class Served:
    """A server under test and a client of it."""

    def __init__(self, server: HttpServer, health: Health, shared: Shared) -> None:
        self.health = health
        self.shared = shared
        self.address = f"http://127.0.0.1:{server.port}"
        self._client = httpx.AsyncClient(base_url=self.address, timeout=SOON)

    async def get(self, path: str, accept: str = "*/*") -> httpx.Response:
        return await self._client.get(path, headers={"Accept": accept})

    async def metric(self, name: str) -> str | None:
        """The value of the only series of a metric, or None when it has none."""
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith(f"dispatch_worker_{name}"):
                return line.rpartition(" ")[2]
        return None

    async def close(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def running(server: HttpServer) -> AsyncIterator[None]:
    task = asyncio.create_task(server.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(metrics_module, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(http, "STATUS_SECONDS", 0.05)
    shared = Shared()
    health = Health(30)
    metrics = Metrics(["requests"], max_in_flight=5, version="1")
    server = HttpServer(
        Listen("127.0.0.1", 0),
        health,
        partial(metrics.scrape, shared.read),
        shared.status,
        shared,
    )
    async with running(server):
        await asyncio.wait_for(server.serving.wait(), SOON)
        client = Served(server, health, shared)
        yield client
        await client.close()


async def test_metrics_show_what_redis_says_now(served: Served) -> None:
    answer = await served.get("/metrics")

    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert await served.metric("stream_lag_entries{") == "7.0"
    assert await served.metric("stream_pending_entries{") == "2.0"
    assert await served.metric("stream_oldest_pending_age_seconds{") == "1.5"
    assert await served.metric("stream_lag_known{") == "1.0"
    assert await served.metric("workers_alive ") == "3.0"


@pytest.mark.parametrize("trouble", ["down", "hanging"])
async def test_during_an_outage_old_values_are_not_shown(served: Served, trouble: str) -> None:
    before = await served.metric("stream_lag_entries{")

    setattr(served.shared, trouble, True)

    assert before == "7.0"
    assert await served.metric("stream_lag_known{") == "0.0"
    assert await served.metric("stream_lag_entries{") is None
    assert await served.metric("stream_pending_entries{") is None
    assert await served.metric("workers_alive ") == "NaN"


async def test_a_lag_redis_does_not_know_is_unknown_and_not_zero(served: Served) -> None:
    served.shared.backlog = Backlog({"requests": StreamBacklog(lag=None, pending=4)})

    assert await served.metric("stream_lag_known{") == "0.0"
    assert await served.metric("stream_lag_entries{") is None
    assert await served.metric("stream_pending_entries{") == "4.0"


async def test_probes_say_why(served: Served) -> None:
    healthy = await served.get("/healthz"), await served.get("/readyz")
    served.health.condition("redis", ok=False, reason="no answer")
    unready = await served.get("/readyz")
    alive = await served.get("/healthz")
    served.health.loop("reader", stall_seconds=-1)
    dead = await served.get("/healthz")

    assert [answer.status_code for answer in healthy] == [200, 200]
    assert (unready.status_code, unready.json()) == (503, {"ok": False, "reasons": {"redis": "no answer"}})
    assert alive.status_code == 200
    assert (dead.status_code, list(dead.json()["reasons"])) == (503, ["reader"])


async def test_the_status_or_why_there_is_none(served: Served) -> None:
    told = await served.get("/status")
    served.shared.down = True
    down = await served.get("/status")
    served.shared.hanging = True
    slow = await served.get("/status")

    assert (told.status_code, told.json()) == (200, {"workers": 3})
    assert (down.status_code, down.json()) == (
        503,
        {"error": "connection refused", "code": "redis.unavailable"},
    )
    assert slow.status_code == 503


@pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "text/html"])
async def test_a_browser_gets_a_page_that_may_load_nothing(served: Served, accept: str) -> None:
    answer = await served.get("/status?id=1-0", accept)

    assert (answer.status_code, answer.text) == (200, "<p>['id']</p>")
    assert answer.headers["Content-Type"].startswith("text/html; charset=utf-8")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert answer.headers["Vary"] == "Accept"


UNREADABLE = [
    (b'{"token": "t"}', "application/json"),
    (b"--x--", "multipart/form-data; boundary=x"),
    (b"\xff\xfe=\xff", http.FORM),
    (b"token=t", f"{http.FORM}; charset=klingon"),
]


async def test_a_form_is_handed_on_with_where_it_stood_and_its_answer_is_not_repeated(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.address) as client:
        origin = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        done = await client.post("/status", data={"action": "cancel", "token": "t"}, headers=origin)
        refused = await client.post("/status", headers={"Content-Type": http.FORM})
        too_large = await client.post("/status", data={"token": "x" * 20_000})
        other = await client.put("/status")
        unreadable = [
            await client.post("/status", content=body, headers={"Content-Type": kind})
            for body, kind in UNREADABLE
        ]

    assert (done.status_code, done.headers["Location"]) == (303, "/status?told=done")
    assert (refused.status_code, refused.text) == (403, "<p>no</p>")
    assert "default-src 'none'" in refused.headers["Content-Security-Policy"]
    assert (too_large.status_code, other.status_code) == (413, 405)
    assert [answer.status_code for answer in unreadable] == [415, 415, 400, 400]
    first = served.shared.ordered[0]
    assert first.fields == {"action": "cancel", "token": "t"}
    assert (first.origin, first.site) == ("https://evil.example", "cross-site")
    assert first.host == served.address.removeprefix("http://")
    assert len(served.shared.ordered) == 2


async def test_openmetrics_for_those_who_ask_for_it(served: Served) -> None:
    answer = await served.get("/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_a_port_that_is_taken_is_served_once_it_is_free() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        asked = asyncio.Event()

        class Trying(Backoff):
            def delay(self, failures: int, chance: float) -> float:
                asked.set()
                return min(0.01, super().delay(failures, chance))

        shared = Shared()
        metrics = Metrics(["requests"], max_in_flight=5, version="1")
        server = HttpServer(
            Listen("127.0.0.1", port),
            Health(30),
            partial(metrics.scrape, shared.read),
            shared.status,
            shared,
            retries=Trying(),
        )
        async with running(server):
            await asyncio.wait_for(asked.wait(), SOON)
            refused = server.port
            holder.close()
            await asyncio.wait_for(server.serving.wait(), SOON)

            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{port}/healthz", timeout=SOON)

    assert refused == 0
    assert answer.status_code == 200
