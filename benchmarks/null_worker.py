"""A whole worker whose Nomad accepts at once and has nothing to tell: what is left is Redis and ourselves.

`python -m benchmarks.null_worker COUNT` settles so many messages, says how fast, and ends. What is measured
begins with the first message settled: read, admit, intend, dispatched, settle, two replies, metrics, logs.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from worker.adapters.nomad.client import NomadClient
from worker.adapters.redis.ledger import RedisLedger
from worker.core.frames import HEARTBEAT, Frame
from worker.core.model import Dispatched, Order, Place, Record
from worker.core.observed import Living
from worker.runtime import app, wiring
from worker.settings import load


class NullNomad(NomadClient):
    """Gives every order a job."""

    async def dispatch(self, order: Order) -> Dispatched:
        return Dispatched(
            f"{order.job}/dispatch-1795484592-{order.token}", "69048121-e42c-ae4b-ff12-26691881a2a7"
        )

    async def events(
        self, _place: Place, _index: int, _wanted: Callable[[str], bool]
    ) -> AsyncGenerator[Sequence[Frame], None]:
        yield [HEARTBEAT]
        await asyncio.Event().wait()

    async def live_children(self, _place: Place, _parent: str) -> Mapping[str, Living]:
        return {}


class CountingLedger(RedisLedger):
    """Tells when the last message is settled."""

    left = total = int(sys.argv[1]) if sys.argv[1:] else 0
    started = cpu = 0.0

    async def settle(self, record: Record) -> Record:
        settled = await super().settle(record)
        kind = type(self)
        if kind.left == kind.total:
            kind.started, kind.cpu = time.perf_counter(), time.process_time()
        kind.left -= 1
        if not kind.left:
            wall, cpu = time.perf_counter() - kind.started, time.process_time() - kind.cpu
            print(json.dumps({"rate": kind.total / wall, "per_core": kind.total / cpu}), flush=True)
            os._exit(0)
        return settled


if __name__ == "__main__":
    parts: Any = wiring
    parts.NomadClient, parts.RedisLedger = NullNomad, CountingLedger
    raise SystemExit(app.run(load()))
