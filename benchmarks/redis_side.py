"""Messages per second through Redis: the whole worker with a Nomad that costs nothing; queue libraries."""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, Result, in_turns, process, redis_server, send

LIBRARIES = ("arq", "taskiq", "streaq")
ENVIRONMENTS = ROOT / ".tools" / "bench"
RUN_SECONDS = 180.0


async def run(*, full: bool) -> Result:
    """Every side in turns, each on a Redis of its own, all of the work there before it starts."""
    result = Result("redis_side", "The Redis side: no Nomad, an empty task")
    rounds, count = (7, 20_000) if full else (3, 5_000)
    there = [name for name in LIBRARIES if _python(name).exists()]
    if missing := set(LIBRARIES) - set(there):
        result.remarks.append(f"not installed, hence left out: {', '.join(sorted(missing))}")
    told = await in_turns(
        rounds, {"worker": partial(_ours, count), **{name: partial(_theirs, name, count) for name in there}}
    )
    by_core = {}
    for name, rounds_of in told.items():
        result.add(f"{name}, of the wall clock", "messages/s", [one["rate"] for one in rounds_of])
        by_core[name] = result.add(f"{name}, per core", "messages/s", [one["per_core"] for one in rounds_of])
    for name in there:
        result.ratio(f"worker / {name}, per core", by_core["worker"], by_core[name])
    if there:
        fastest = max(there, key=lambda name: by_core[name].median)
        times = result.ratio(f"worker / the fastest of them ({fastest})", by_core["worker"], by_core[fastest])
        result.target("times the fastest queue library", times, least=1)
    return result


async def _ours(count: int) -> dict[str, float]:
    async with redis_server() as (server, client):
        await send(client, count, {"job": "bench", "payload": b"x" * 64, "detach": "1"})
        environment = {
            "REDIS_URL": server.url,
            "NOMAD_ADDR": "http://127.0.0.1:1",
            "WORKER_HTTP_ADDR": "127.0.0.1:0",
            "WORKER_MAX_IN_FLIGHT": "500",
            "WORKER_DISPATCH_CONCURRENCY": "90",
        }
        command = (sys.executable, "-m", "benchmarks.null_worker", str(count))
        return await _told(*command, **environment)


async def _theirs(name: str, count: int) -> dict[str, float]:
    async with redis_server() as (server, _):
        return await _told(
            str(_python(name)), str(ROOT / "benchmarks" / "others.py"), name, server.url, str(count)
        )


async def _told(*command: str, **environment: str) -> dict[str, float]:
    """What a process says of itself on its last line."""
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "redis_side.log"
    async with process(*command, log=log, **environment) as started, asyncio.timeout(RUN_SECONDS):
        assert started.process.stdout is not None
        line = await started.process.stdout.readline()
    if not line:
        sys.exit(f"{command} said nothing:\n{log.read_text()[-4000:]}")
    figures: dict[str, float] = json.loads(line)
    return figures


def _python(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"
