"""The process from start to end: come up, work, and leave in four phases: refuse, drain, hand over, close.

Knows nothing of messages; what each part does stands with the part.
"""

import asyncio
import gc
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import structlog

from worker import __version__
from worker.adapters.redis.durability import Durability, require
from worker.adapters.redis.selftest import inspect, rehearse
from worker.core.backoff import Backoff
from worker.errors import RedisUnavailable, WorkerError
from worker.runtime.http import HttpServer
from worker.runtime.logs import Redactor, configure
from worker.runtime.status import judge_readiness, status
from worker.runtime.statuspage.actions import Actions
from worker.runtime.statuspage.serve import StatusPage
from worker.runtime.statuspage.view import Viewer
from worker.runtime.tasks import TaskTree
from worker.runtime.wiring import Parts, assemble, redis_options
from worker.settings import Settings

log = structlog.get_logger()

T = TypeVar("T")

STARTING = Backoff(first_seconds=0.2, most_seconds=5.0)
"""Without a bound on the tries: a worker may come up before its Redis does; /readyz says so meanwhile."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""With Python's own 700 objects it would look for garbage several times per message, and find none: what a
message leaves behind is freed without."""


def run(settings: Settings) -> int:
    """Run a worker until it is told to stop. Returns the process's exit code."""
    gc.freeze()  # what is imported stays
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    loop_factory = None
    if find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415 - an extra

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(App(settings, whole_process=True).run())


class App:
    """One worker process.

    Args:
        settings: checked.
        signals: those that stop it; none where the process is somebody else's.
        whole_process: nothing else is done in this process after it, so that loggers may keep its set-up.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        signals: Sequence[signal.Signals] = SIGNALS,
        whole_process: bool = False,
    ) -> None:
        self._settings = settings
        self._signals = signals
        self._whole_process = whole_process
        self._told = asyncio.Event()
        self._forced = asyncio.Event()
        self._error: BaseException | None = None
        self._http: HttpServer | None = None
        self.ready = asyncio.Event()
        """Set when the worker is ready for the first time."""

    @property
    def http_port(self) -> int:
        """The port in use for /metrics and the rest; 0 while there is none."""
        return self._http.port if self._http else 0

    def stop(self) -> None:
        """Leave in order; told a second time, at once."""
        if self._told.is_set():
            self._forced.set()
        self._told.set()

    async def run(self) -> int:
        """Come up, work, leave. Returns the process's exit code: 0 when it was told to stop."""
        redactor = Redactor(self._settings.secret_texts)
        configure(
            form=self._settings.log_format,
            level=self._settings.log_level,
            worker=self._settings.name,
            redactor=redactor,
            lasting=self._whole_process,
        )
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        parts = assemble(self._settings, self._fail, redactor.learn)
        tree = TaskTree(self._fail)
        actions = Actions(
            self._settings.status_token_file,
            redis_options(self._settings, redactor.learn),
            prefix=self._settings.prefix,
            streams=self._settings.stream_names,
            count=parts.metrics.ordered,
            learn=redactor.learn,
        )
        http = self._http = HttpServer(
            self._settings.http_addr,
            parts.health,
            metrics=partial(parts.metrics.scrape, parts.survey.backlog),
            status=partial(status, parts),
            page=StatusPage(Viewer(parts, __version__), actions),
        )
        try:
            tree.start("http", http.run())
            if await self._unless_told(self._come_up(parts, tree)):
                log.info("worker.started", version=__version__, streams=self._settings.stream_names)
                await self._told.wait()
                await self._leave(parts, tree)
        except WorkerError as error:
            self._fail(error)
        finally:
            await tree.cancel()
            await actions.aclose()
            await parts.nomad.aclose()
            if parts.traces is not None:
                await parts.traces.aclose()
            await parts.redis.close()
        if self._error is not None:
            log.error("worker.failed", code=getattr(self._error, "code", ""), error=str(self._error))
            return 1
        log.info("worker.stopped")
        return 0

    def _fail(self, error: BaseException) -> None:
        """Something died that the worker cannot do without: leave in order, with an error."""
        self._error = self._error or error
        self._told.set()

    async def _come_up(self, parts: Parts, tree: TaskTree) -> None:
        parts.health.condition("started", ok=False, reason="connecting to Redis")
        report = await self._until_redis_is_there(lambda: inspect(parts.redis.ops))
        for warning in report.warnings:
            log.warning("redis.unsuitable", version=report.version, warning=warning)
        await self._until_redis_is_there(lambda: rehearse(parts.redis.ops, parts.keys, parts.clock))
        durability = Durability(self._settings.durability)
        await self._until_redis_is_there(lambda: require(parts.redis.ops, durability))
        await self._until_redis_is_there(parts.inbox.prepare)
        # The lease comes before the first read: an entry must never be held by a worker without one.
        await self._until_redis_is_there(parts.heartbeat.beat)
        tree.start("heartbeat", parts.health.watched("heartbeat", parts.heartbeat.run))
        for feed in parts.feeds:
            tree.start(f"feed {feed.name}", feed.follow())
            tree.start(f"sweep {feed.name}", feed.sweep_often())
        tree.start("take over", parts.health.watched("take over", parts.housekeeping.take_over))
        tree.start("reconcile", parts.housekeeping.reconcile())
        tree.start("tidy", parts.housekeeping.tidy())
        tree.start("cancels", parts.health.watched("cancels", parts.cancel_feed.run))
        tree.start(
            "readiness", parts.health.watched("readiness", partial(judge_readiness, parts, self.ready))
        )
        tree.start("lookout", parts.lookout.run())
        tree.start("lag", parts.lag.run())
        tree.start("policy", parts.policy_file.run())
        tree.start("queue", parts.health.watched("queue", parts.waiting.run))
        tree.start("intake", parts.health.watched("intake", parts.intake.run))
        parts.health.condition("started", ok=True)

    async def _leave(self, parts: Parts, tree: TaskTree) -> None:
        seconds = self._settings.drain_seconds
        log.info("worker.draining", in_flight=len(parts.pipeline), seconds=seconds)
        parts.health.condition("draining", ok=False, reason="this worker is leaving")
        leaving = asyncio.create_task(self._hand_over(parts, tree), name="leave")
        forced = asyncio.create_task(self._forced.wait(), name="forced")
        done, _ = await asyncio.wait({leaving, forced}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if leaving not in done:
            log.warning("worker.drain_cut_off", forced=forced in done, in_flight=len(parts.pipeline))
        for task in (leaving, forced):
            task.cancel()
        await asyncio.wait({leaving, forced})

    async def _hand_over(self, parts: Parts, tree: TaskTree) -> None:
        # Refuse: a read under way is waited out; were it cancelled, what it brings would be lost from sight.
        tree.may_end("queue", "intake")
        parts.waiting.stop()
        parts.intake.stop()
        await tree.finish("intake", self._settings.block_seconds + 4)
        await tree.finish("queue", 4)
        for name in ("take over", "reconcile", "tidy", "cancels"):
            await tree.finish(name, 0)
        # Drain: what Nomad or Redis is being asked comes to a record; running jobs are simply let go.
        await parts.pipeline.drain(self._settings.drain_seconds)
        # Hand over: without a lease, everything this worker held is anyone's at once.
        await tree.finish("heartbeat", 0)
        with suppress(RedisUnavailable):
            await parts.leases.release()

    async def _unless_told(self, coming_up: Awaitable[None]) -> bool:
        """Whether it came up before it was told to stop."""
        up = asyncio.ensure_future(coming_up)
        told = asyncio.create_task(self._told.wait(), name="told")
        await asyncio.wait({up, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if up.done():
            up.result()
            return True
        up.cancel()
        await asyncio.wait({up})
        return False

    async def _until_redis_is_there(self, act: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await act()
            except RedisUnavailable as error:
                failures += 1
                log.warning("redis.unreachable", code=error.code, error=str(error), failures=failures)
            await asyncio.sleep(STARTING.delay(failures, random.random()))  # noqa: S311
