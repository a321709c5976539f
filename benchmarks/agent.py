"""Dispatches per second that a real Nomad accepts: the worker's, and wrk's with the same tokens and body.

Runs against the agent at NOMAD_ADDR, else against `nomad` on PATH. The job's constraint fits no node, so that
nothing runs. Every side has the same seconds, and in every round a parent job of its own: a burst is accepted
faster than a flow, for Nomad puts scheduling off, and each dispatch with a token looks at all children.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import STREAM, Measured, Result, in_turns, redis_server, send, worker
from tests.nomad_agent import dev_agent
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.core.model import Order, Place

Side = Callable[[str, str, int], Awaitable[float]]
"""Dispatches per second to the agent at an address, of a job, within so many seconds."""

CONNECTIONS = 16
MOST_PER_SECOND = 1_500
WRK = """
local token = 0
request = function()
  token = token + 1
  return wrk.format("POST", "/v1/job/%s/dispatch?idempotency_token=1795484592000-" .. token, nil, '%s')
end
"""


async def run(*, full: bool) -> Result:
    """wrk and the worker in turns; the loop over the command where there is one."""
    result = Result("agent", "Dispatches accepted by a real Nomad")
    rounds, seconds = (5, 15) if full else (3, 8)
    if not shutil.which("wrk"):
        result.remarks.append("left out: it needs wrk")
        return result
    with _agent() as address:
        if not address:
            result.remarks.append("left out: it needs NOMAD_ADDR, or `nomad` on PATH")
            return result
        worker_rate, share = await _compare(result, address, rounds, seconds, "")
        await _loops(result, address, rounds, worker_rate)
    first, *others = sorted(os.sched_getaffinity(0))
    if others and not os.environ.get("NOMAD_ADDR"):
        # As in a cluster, where nobody takes the processor from the servers: they are to be the limit.
        with _on({first}), _agent() as address, _on(set(others)):
            _, share = await _compare(result, address, rounds, seconds, ", Nomad on a core of its own")
    result.target("of wrk's rate", share, least=0.9)
    return result


async def _compare(
    result: Result, address: str, rounds: int, seconds: int, where: str
) -> tuple[Measured, Measured]:
    """The three sides in turns. Returns the worker's rate, and its share of wrk's."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        agent = (await http.get("/v1/agent/self")).json()
        remark = f"Nomad {agent['config']['Version']['Version']}"
        if remark not in result.remarks:
            result.remarks.append(remark)

        async def measured(side: Side) -> float:
            return await side(address, await _fresh_job(http), seconds)

        sides: dict[str, Side] = {
            "worker": _worker,
            "wrk": lambda *asked: asyncio.to_thread(_wrk, *asked),
            "client": _client,
        }
        told = await in_turns(rounds, {name: partial(measured, side) for name, side in sides.items()})
    rates = {side: result.add(f"{side}{where}", "dispatches/s", values) for side, values in told.items()}
    result.ratio(f"the worker's Nomad client alone / wrk{where}", rates["client"], rates["wrk"])
    result.ratio(f"worker / its Nomad client alone{where}", rates["worker"], rates["client"])
    return rates["worker"], result.ratio(f"worker / wrk{where}", rates["worker"], rates["wrk"])


async def _loops(result: Result, address: str, rounds: int, worker_rate: Measured) -> None:
    """The loop over the command, where there is one."""
    program = shutil.which("nomad")
    if program is None:
        return
    loops = []
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        for _ in range(rounds):
            job = await _fresh_job(http)
            loops.append(await asyncio.to_thread(_loop, program, address, job, 10))
    loop = result.add("a loop over `nomad job dispatch`", "dispatches/s", loops)
    result.ratio("worker / that loop", worker_rate, loop)


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """Have this process, and what it starts, run on these cores."""
    before = os.sched_getaffinity(0)
    _pin(cores)
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    # Each thread has cores of its own, and hands them down to what it starts.
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


async def _worker(address: str, job: str, seconds: int) -> float:
    """What becomes of the jobs is left to others."""
    # Nomad will not place them: a worker that minds its pace would wait for that.
    settings = {"WORKER_DISPATCH_CONCURRENCY": str(CONNECTIONS), "WORKER_DISPATCH_PACE": "fixed"}
    settings["WORKER_NOMAD_WAITING_LIMIT"] = "0"
    if token := os.environ.get("NOMAD_TOKEN"):
        settings["NOMAD_TOKEN"] = token
    fields: dict[str, str | bytes] = {"job": job, "payload": b"x" * 64, "detach": "1"}
    fields["meta"] = '{"who":"ada"}'
    async with redis_server() as (server, client), worker(server.url, address, **settings):
        started = time.perf_counter()
        await send(client, MOST_PER_SECOND * seconds, fields)
        await asyncio.sleep(seconds - (time.perf_counter() - started))
        (group,) = await client.xinfo_groups(STREAM)
        done: int = group["entries-read"] - group["pending"]
        return done / (time.perf_counter() - started)


async def _client(address: str, job: str, seconds: int) -> float:
    """The worker's client without Redis, ledger or event stream: what Python and HTTP cost by themselves."""
    options = NomadOptions(address=address, token=os.environ.get("NOMAD_TOKEN", ""), pool_size=CONNECTIONS)
    place, done, started = Place("", "default"), 0, time.perf_counter()
    async with NomadClient(options) as client:

        async def dispatch(number: int) -> None:
            nonlocal done
            while time.perf_counter() - started < seconds:
                token = f"1795484592{number:03d}-{done}"
                await client.dispatch(Order(place, job, token, payload=b"x" * 64, meta={"who": "ada"}))
                done += 1

        await asyncio.gather(*(dispatch(number) for number in range(CONNECTIONS)))
    return done / (time.perf_counter() - started)


def _wrk(address: str, job: str, seconds: int) -> float:
    payload = base64.b64encode(b"x" * 64).decode()
    body = json.dumps({"Payload": payload, "Meta": {"who": "ada"}}, separators=(",", ":"))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK % (job, body))
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, address]
        if token := os.environ.get("NOMAD_TOKEN"):
            command += ["-H", f"X-Nomad-Token: {token}"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "Non-2xx" not in told, told
    rate = re.search(r"Requests/sec: *([\d.]+)", told)
    if not rate:
        raise ValueError(told)
    return float(rate[1])


def _loop(program: str, address: str, job: str, count: int) -> float:
    environment = {**os.environ, "NOMAD_ADDR": address}
    started = time.perf_counter()
    for number in range(count):
        command = [program, "job", "dispatch", "-detach", "-meta", "who=ada"]
        command += ["-idempotency-token", f"1795484592001-{number}", job, "-"]
        subprocess.run(command, input=b"x" * 64, env=environment, check=True, capture_output=True, timeout=30)
    return count / (time.perf_counter() - started)


async def _fresh_job(http: httpx.AsyncClient) -> str:
    """A parent job of its own, on an agent that is done with all others'."""
    job = await _register(http)
    await _idle(http)
    return job


async def _register(http: httpx.AsyncClient) -> str:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    task = {"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}
    job: dict[str, Any] = {
        "ID": name,
        "Name": name,
        "Type": "batch",
        "Datacenters": ["*"],
        "Constraints": [{"LTarget": "${node.unique.name}", "RTarget": "none", "Operand": "="}],
        "ParameterizedJob": {"Payload": "optional", "MetaOptional": ["who"]},
        "TaskGroups": [{"Name": "g", "Tasks": [task]}],
    }
    (await http.post("/v1/jobs", json={"Job": job})).raise_for_status()
    return name


async def _idle(http: httpx.AsyncClient) -> None:
    """Wait until the schedulers are done with the last side's jobs: they must not be at this one's cost."""
    async with asyncio.timeout(120):
        pending = True
        while pending:
            await asyncio.sleep(0.2)
            asked = await http.get("/v1/evaluations", params={"status": "pending", "per_page": "1"})
            pending = bool(asked.json())


@contextmanager
def _agent() -> Iterator[str]:
    """An agent's address; empty where there is none."""
    program = shutil.which("nomad")
    if program is None or os.environ.get("NOMAD_ADDR"):
        yield os.environ.get("NOMAD_ADDR", "").rstrip("/")
        return
    with dev_agent(program) as agent:
        yield agent.address
