"""Everything a producer needs, in one process tree: an embedded Redis, the Nomad simulator, and a worker.

Knows nothing of what is sent through it. For development and tests; nothing in it outlives it.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from worker.client import DispatchClient, RedisOptions
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Simulator
from worker.runtime.app import SIGNALS, App
from worker.settings import load

UP_SECONDS = 30.0
DRAIN_SECONDS = 15.0


class DevStack:
    """Use as `async with`. Addresses are loopback and free ports, unless given.

    Args:
        jobs: parameterized jobs, as `load_job` or `demo_jobs` return them.
        settings: more of the worker's environment, e.g. `{"WORKER_LOG_LEVEL": "debug"}`.
        redis_port, nomad_port, http_port: 0: any free one.
        nomad: another simulator than the usual one.
        signals: those that stop the worker.
    """

    def __init__(
        self,
        jobs: Sequence[dict[str, Any]],
        *,
        settings: Mapping[str, str] | None = None,
        redis_port: int = 0,
        nomad_port: int = 0,
        http_port: int = 0,
        nomad: Simulator | None = None,
        signals: Sequence[signal.Signals] = SIGNALS,
    ) -> None:
        # As the worker wants it to be, though its folder ends with it: nobody is to be warned here.
        self.redis = EmbeddedRedis(args=("--appendonly", "yes"), port=redis_port or None)
        self.nomad = nomad or Simulator(jobs=jobs, port=nomad_port)
        self._signals = signals
        self._settings = dict(settings or {})
        self._http_port = http_port
        self._app: App | None = None
        self._worker: asyncio.Task[int] | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self.redis)
            await opened.enter_async_context(self.nomad)
            settings = {
                "REDIS_URL": self.redis.url,
                "NOMAD_ADDR": self.nomad.address,
                "WORKER_HTTP_ADDR": f"127.0.0.1:{self._http_port}",
                **self._settings,
            }
            self._app = App(load(settings), signals=self._signals)
            self._worker = asyncio.create_task(self._app.run(), name="worker")
            opened.push_async_callback(self._stop_worker, self._app, self._worker)
            await self._until_ready(self._app, self._worker)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    @property
    def http_address(self) -> str:
        """Where the worker serves /metrics, /healthz, /readyz and /status."""
        return f"http://127.0.0.1:{self._app.http_port if self._app else 0}"

    async def ended(self) -> None:
        """Wait until the worker ends, as it does when the process is told to stop."""
        if self._worker is not None:
            await self._worker

    def client(self) -> DispatchClient:
        """A producer's client of this stack; close it, or use it as `async with`."""
        return DispatchClient(RedisOptions(self.redis.url))

    async def _until_ready(self, app: App, worker: "asyncio.Task[int]") -> None:
        ready = asyncio.create_task(app.ready.wait(), name="ready")
        await asyncio.wait({ready, worker}, timeout=UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            message = f"the worker was not ready within {UP_SECONDS:g} s; its log tells why"
            raise RuntimeError(message)

    @staticmethod
    async def _stop_worker(app: App, worker: "asyncio.Task[int]") -> None:
        app.stop()
        await asyncio.wait({worker}, timeout=DRAIN_SECONDS)
        if not worker.done():
            worker.cancel()
            await asyncio.wait({worker})
