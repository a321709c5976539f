"""An empty task in another queue library, run in that library's environment: `others.py LIBRARY URL COUNT`.

Each is set up to be fast: a hundred tasks at once, uvloop, no log lines, nothing but what it needs to know
that the task is done. Imports nothing of ours, so that any environment can run it.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from typing import Any

AT_ONCE = 100


class Count:
    """Measures from the first task to the last, in this very process, and ends it then."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._total = total
        self._started = self._cpu = 0.0

    def one(self) -> None:
        if self._left == self._total:
            self._started, self._cpu = time.perf_counter(), time.process_time()
        self._left -= 1
        if self._left:
            return
        wall, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        print(json.dumps({"rate": self._total / wall, "per_core": self._total / cpu}), flush=True)
        os._exit(0)  # how it shuts down is not measured


async def arq(url: str, total: int) -> None:
    """A job's hash and an entry of a sorted set; polled, results kept for an hour unless told otherwise."""
    connections, worker = importlib.import_module("arq.connections"), importlib.import_module("arq.worker")
    count = Count(total)

    async def empty(_ctx: Any) -> None:
        count.one()

    settings = connections.RedisSettings.from_dsn(url)
    pool = await connections.create_pool(settings)
    for _ in range(0, total, AT_ONCE):
        await asyncio.gather(*(pool.enqueue_job("empty") for _ in range(AT_ONCE)))
    await worker.Worker(
        functions=[worker.func(empty, name="empty")],
        redis_settings=settings,
        max_jobs=AT_ONCE,
        poll_delay=0.01,
        keep_result=0,
        handle_signals=False,
    ).async_run()


async def taskiq(url: str, total: int) -> None:
    """A Redis stream with a consumer group, acknowledged when the task is done; no results."""
    broker: Any = importlib.import_module("taskiq_redis").RedisStreamBroker(url)
    receiver = importlib.import_module("taskiq.api.receiver")
    count = Count(total)

    async def empty() -> None:
        count.one()

    task = broker.task(task_name="empty")(empty)

    await broker.startup()
    for _ in range(0, total, AT_ONCE):
        await asyncio.gather(*(task.kiq() for _ in range(AT_ONCE)))
    await receiver.run_receiver_task(broker, max_async_tasks=AT_ONCE, max_prefetch=AT_ONCE)


async def streaq(url: str, total: int) -> None:
    """A Redis stream and scripts; results kept for some minutes unless told otherwise."""
    make: Any = importlib.import_module("streaq").Worker
    count = Count(total)

    async def empty() -> None:
        count.one()

    producer, worker = (
        make(redis_url=url, concurrency=AT_ONCE, prefetch=AT_ONCE, handle_signals=False) for _ in range(2)
    )
    task, _ = (each.task(ttl=0)(empty) for each in (producer, worker))
    async with producer:
        await producer.enqueue_many([task.enqueue() for _ in range(total)])
    await worker.run_async()


LIBRARIES = {"arq": arq, "taskiq": taskiq, "streaq": streaq}

if __name__ == "__main__":
    name, redis_url, total_text = sys.argv[1:]
    importlib.import_module("uvloop").run(LIBRARIES[name](redis_url, int(total_text)))
