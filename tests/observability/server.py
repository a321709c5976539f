"""A real Prometheus that scrapes a worker under test every second."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.observability.stage import until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
READY_SECONDS = 30.0

CONFIG = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: dispatch-worker
    static_configs: [{{ targets: ["{target}"] }}]
"""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self._http = httpx.AsyncClient(base_url=address, timeout=10)

    async def get(self, path: str, **parameters: str) -> Any:
        """What an endpoint answers under `data`; fails the test where Prometheus refuses the question."""
        answer = await self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """The instant vector of an expression, without the samples that are NaN."""
        found = (await self.get("query", query=expr))["result"]
        return [one for one in found if not math.isnan(float(one["value"][1]))]

    async def until(self, expr: str, seconds: float = READY_SECONDS) -> None:
        """Wait until an expression gives data: scrapes come once a second."""
        await until(lambda: self._gives_data(expr), seconds, expr)

    async def ready(self) -> bool:
        """Whether it answers questions."""
        try:
            return (await self._http.get("/-/ready")).is_success
        except httpx.TransportError:
            return False

    async def _gives_data(self, expr: str) -> bool:
        return bool(await self.query(expr))

    async def aclose(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def prometheus(folder: Path, worker: str) -> AsyncIterator[Prometheus]:
    """Prometheus with the project's rules and one target, `http://host:port`."""
    config = folder / "prometheus.yaml"
    config.write_text(CONFIG.format(rules=RULES, target=urlsplit(worker).netloc))
    address = f"127.0.0.1:{_free_port()}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    server = Prometheus(f"http://{address}")
    try:
        await until(server.ready, READY_SECONDS, "Prometheus is ready")
        yield server
    finally:
        await server.aclose()
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
