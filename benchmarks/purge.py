"""What finished children cost a dispatch, and what purging them costs, on a real Nomad and on the simulator.

The real one is `nomad` on PATH, started here as a server without clients, so that nothing runs but what is
measured. Children are stopped before they are placed: to the token check they are like any that ended.
"""

import asyncio
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import httpx

from benchmarks.common import START_SECONDS, STOP_SECONDS, Process, Result, free_port, percentile
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.core.model import Order, Place
from worker.dev.simulator import Simulator
from worker.testing import job

PLACE = Place("", "default")
AT_ONCE = 8
"""Dispatches on their way while it is measured, and while children are made."""
AGENT = """
bind_addr = "127.0.0.1"
data_dir  = "{data}"
advertise {{ http = "127.0.0.1"  rpc = "127.0.0.1"  serf = "127.0.0.1" }}
ports {{ http = {http}  rpc = {rpc}  serf = {serf} }}
server {{ enabled = true  bootstrap_expect = 1 }}
client {{ enabled = false }}
"""


async def run(*, full: bool) -> Result:
    """The same dispatches with more and more children kept, and with each purged."""
    result = Result("purge", "Finished children kept, or purged")
    levels, each = ((0, 1_000, 4_000, 16_000), 800) if full else ((0, 1_000, 4_000), 400)
    async with Simulator(jobs=[job("kept"), job("purged")], nodes=0) as nomad:
        await compare(result, "simulator", nomad.address, levels[:3], each)
    if shutil.which("nomad") is None:
        result.remarks.append("No `nomad` on PATH: measured on the simulator only.")
        return result
    async with agent() as (address, process):
        await compare(result, "real agent", address, levels, each, process)
    return result


async def compare(
    result: Result,
    where: str,
    address: str,
    levels: tuple[int, ...],
    each: int,
    process: Process | None = None,
) -> None:
    """Dispatch to a job whose children are kept, and to one whose children are purged, in turns.

    Args:
        process: Nomad's, where it has one of its own: its processor time tells on a busy machine too.
    """

    def cpu_seconds() -> float:
        return process.cpu_seconds if process else 0.0

    async with NomadClient(NomadOptions(address=address, pool_size=2 * AT_ONCE)) as nomad:
        measured = Bench(nomad)
        points = []
        for level in levels:
            await measured.fill("kept", level)
            kept, purged, cpu = [], [], [0.0, 0.0]
            for _ in range(4):
                before = cpu_seconds()
                kept += await measured.dispatches("kept", each // 4, purge=False)
                between = cpu_seconds()
                purged += await measured.dispatches("purged", each // 4, purge=True)
                cpu = [cpu[0] + between - before, cpu[1] + cpu_seconds() - between]
            children = measured.children["kept"]
            middle = statistics.median(kept) * 1000
            points.append((float(children), middle))
            told = result.add(f"{where}, {children} children: a dispatch", "ms", [middle])
            without = result.add(f"{where}, purged: a dispatch", "ms", [statistics.median(purged) * 1000])
            result.add(f"{where}, {children} children: 95 %", "ms", [percentile(kept, 0.95) * 1000])
            result.ratio(f"{where}, {children} children / purged: time", told, without)
            if process:
                ours = result.add(
                    f"{where}, {children} children: dispatch and stop", "ms CPU", [cpu[0] / each * 1e3]
                )
                other = result.add(f"{where}, purged: dispatch and purge", "ms CPU", [cpu[1] / each * 1e3])
                result.ratio(f"{where}, {children} children / purged: CPU", ours, other)
        result.add(f"{where}: a purge", "ms", [statistics.median(measured.purges) * 1000])
        result.curve(f"A dispatch by children, {where}", "children", "ms", {where: points})


class Bench:
    """Dispatches to jobs that are never placed."""

    def __init__(self, nomad: NomadClient) -> None:
        self.nomad = nomad
        self.children = {"kept": 0, "purged": 0}
        self.purges: list[float] = []
        self._tokens = count()

    async def fill(self, parent: str, level: int) -> None:
        """Make dead children until there are so many."""
        missing = max(0, level - self.children[parent])
        await self.dispatches(parent, missing, purge=False)

    async def dispatches(self, parent: str, number: int, *, purge: bool) -> list[float]:
        """Dispatch with tokens, some at once; end each child, or purge it. Returns their seconds."""
        left, seconds = iter(range(number)), list[float]()

        async def one_by_one() -> None:
            for _ in left:
                started = time.perf_counter()
                child = await self.nomad.dispatch(Order(PLACE, parent, f"token-{next(self._tokens)}"))
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
                if purge:
                    await self.nomad.purge(PLACE, child.job_id)
                    self.purges.append(time.perf_counter() - started)
                else:
                    await self.nomad.stop(PLACE, child.job_id)
                    self.children[parent] += 1

        await asyncio.gather(*(one_by_one() for _ in range(AT_ONCE)))
        return seconds


@asynccontextmanager
async def agent() -> AsyncIterator[tuple[str, Process]]:
    """A real Nomad server with the two jobs; ended with the block."""
    folder = Path(tempfile.mkdtemp(prefix="nomad-"))
    http, rpc, serf = [await free_port() for _ in range(3)]
    config = folder / "agent.hcl"
    config.write_text(AGENT.format(data=folder / "data", http=http, rpc=rpc, serf=serf))
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    log = (folder / "agent.log").open("wb")
    started = await asyncio.create_subprocess_exec(
        "nomad", "agent", "-config", str(config), stdout=log, stderr=log, env=environment
    )
    try:
        address = f"http://127.0.0.1:{http}"
        async with httpx.AsyncClient(base_url=address, timeout=10) as client:
            await _leads(client)
            for name in ("kept", "purged"):
                (await client.post("/v1/jobs", json={"Job": job(name)})).raise_for_status()
        yield address, Process(started)
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await started.wait()
        except TimeoutError:
            started.kill()
            await started.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _leads(client: httpx.AsyncClient) -> None:
    for _ in range(int(START_SECONDS / 0.2)):
        try:
            leader = await client.get("/v1/status/leader")
            # A new leader restores its state before it lists any.
            if leader.text.strip('"\n') and (await client.get("/v1/jobs")).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)
    sys.exit("the agent did not get ready")
