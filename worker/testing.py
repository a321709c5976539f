"""For your own tests: Redis, a Nomad simulator and a worker inside your test's process, and jobs to run.

Knows nothing of any test framework. `docs/testing.md` shows fixtures for pytest. Needs the extra `dev`, or a
`redis-server` on PATH.

    async with Stack([job("render", meta=["who"])]) as stack, stack.client() as client:
        sent = await client.send(job="render", meta={"who": "ada", "exit_code": "3"})
        final = await client.wait(sent, timeout=30)
        assert (final.verdict, final.exit_code) == ("failed", 3)
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import structlog

from worker.client import RedisOptions, SyncDispatchClient
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Node, Simulator
from worker.dev.simulator.jobfile import canonical_job, load_job
from worker.dev.stack import DevStack

__all__ = ["EmbeddedRedis", "Node", "Simulator", "Stack", "job", "load_job", "running"]

QUICK = {
    "WORKER_LOG_LEVEL": "error",
    "WORKER_LOG_FORMAT": "console",
    "WORKER_BLOCK_SECONDS": "0.1",
    "WORKER_LEASE_SECONDS": "5",
    "WORKER_NOMAD_TIMEOUT_SECONDS": "2",
}
"""Settings for tests: quiet, quick to stop, and soon (9 s, not 17 s) sure of an uncertain dispatch."""
STOP_SECONDS = 30.0


class Stack(DevStack):
    """Redis, simulator and worker; use as `async with`. Nothing of it outlives the test.

    Signals stay the test runner's own. The simulator is at `nomad`, with `nomad.faults` to make it misbehave;
    the embedded Redis at `redis`.

    Args:
        jobs: parameterized jobs, as `job` and `load_job` return them.
        settings: more of the worker's environment, such as `{"WORKER_STREAMS": "high,low"}`.
        nomad: another simulator than the usual one, for instance with ACLs; `jobs` are then its own.
    """

    def __init__(
        self,
        jobs: Sequence[dict[str, Any]] = (),
        *,
        settings: Mapping[str, str] | None = None,
        nomad: Simulator | None = None,
    ) -> None:
        super().__init__(jobs, settings={**QUICK, **(settings or {})}, nomad=nomad, signals=())
        self._logging = ExitStack()

    async def __aenter__(self) -> Self:
        with ExitStack() as logging_before:
            logging_before.enter_context(_logging_as_it_was())
            await super().__aenter__()
            self._logging = logging_before.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._logging:
            await super().__aexit__(kind, error, trace)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the commands of `dispatch-worker` reach this stack."""
        return {"REDIS_URL": self.redis.url, "NOMAD_ADDR": self.nomad.address}

    def sync_client(self) -> SyncDispatchClient:
        """As `client`, for threads: a wait would block the event loop it is called on."""
        return SyncDispatchClient(RedisOptions(self.redis.url))

    def dispatched(self) -> Counter[str]:
        """How many jobs Nomad made for each idempotency token, which is the message ID: never more than 1."""
        return Counter(entry["token"] for entry in self.nomad.record.dispatches)


@contextmanager
def running(
    jobs: Sequence[dict[str, Any]] = (), *, settings: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """A `Stack` for tests without asyncio: it runs in a thread of its own until the block ends.

    Raises:
        RuntimeError: it did not come up; the message tells why.
    """
    stack = Stack(jobs, settings=settings)
    up: Future[Callable[[], object]] = Future()
    thread = threading.Thread(target=_run, args=(stack, up), name="dispatch-stack", daemon=True)
    thread.start()
    stop = up.result()
    try:
        yield stack
    finally:
        stop()
        thread.join(STOP_SECONDS)


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """A worker sets logging up for its process, which is here the test runner's."""
    root = logging.getLogger()
    handlers, level, set_up = list(root.handlers), root.level, structlog.get_config()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**set_up)


def _run(stack: Stack, up: "Future[Callable[[], object]]") -> None:
    async def main() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        async with stack:
            up.set_result(lambda: loop.call_soon_threadsafe(told.set))
            await told.wait()

    try:
        asyncio.run(main())
    except BaseException as error:
        if up.done():
            raise
        up.set_exception(error)


def job(
    job_id: str,
    *,
    run_for: str = "50ms",
    exit_code: int = 0,
    payload: str = "optional",
    meta: Sequence[str] = (),
    meta_required: Sequence[str] = (),
    namespace: str = "default",
) -> dict[str, Any]:
    """A parameterized job whose one task runs and ends as its meta says; nothing is executed.

    A request may set the meta keys `run_for` (such as `2s`) and `exit_code`, for one run.

    Args:
        job_id: its ID.
        run_for: how long the task runs, in Go's form.
        exit_code: what it ends with.
        payload: `optional`, `required` or `forbidden`.
        meta: further meta keys a request may give.
        meta_required: those it must give.
        namespace: where it is.
    """
    defaults = {"run_for": run_for, "exit_code": str(exit_code)}
    task = {
        "Name": "main",
        "Driver": "mock_driver",
        "Config": {"run_for": "${NOMAD_META_run_for}", "exit_code": "${NOMAD_META_exit_code}"},
        "Resources": {"CPU": 1, "MemoryMB": 10},
        "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
    }
    group = {
        "Name": "main",
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        "EphemeralDisk": {"SizeMB": 10},
        "Tasks": [task],
    }
    return canonical_job(
        {
            "ID": job_id,
            "Namespace": namespace,
            "Type": "batch",
            "Datacenters": ["*"],
            "Meta": defaults,
            "ParameterizedJob": {
                "Payload": payload,
                "MetaOptional": [*defaults, *meta],
                "MetaRequired": list(meta_required),
            },
            "TaskGroups": [group],
        }
    )
