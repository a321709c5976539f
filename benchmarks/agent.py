"""Dispatches per second that a real Nomad accepts: the worker's, and wrk's with the same tokens and body.

Runs against the agent at NOMAD_ADDR, else against `nomad` on PATH. The job's constraint fits no node, so that
nothing runs: what is measured is Nomad's acceptance, and its scheduling, which a burst puts off and a steady
flow pays for as it goes. Each side has a parent job of its own in every round, for each dispatch with a token
looks at all children that the parent has.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import Result, all_acknowledged, redis_server, send, worker
from tests.contract.conftest import AGENT, free_ports, wait_until_ready

CONNECTIONS = 16
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
    rounds, seconds = (5, 4) if full else (3, 3)
    with _agent() as address:
        if not address or not shutil.which("wrk"):
            result.remarks.append("left out: it needs wrk, and NOMAD_ADDR or `nomad` on PATH")
            return result
        told: dict[str, list[tuple[float, float]]] = {"worker": [], "wrk": []}
        loops = []
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            agent = (await http.get("/v1/agent/self")).json()
            result.remarks.append(f"Nomad {agent['config']['Version']['Version']}")
            count = 0
            for number in range(rounds):
                for side in ("worker", "wrk") if number % 2 else ("wrk", "worker"):
                    job = await _register(http)
                    await _idle(http)
                    if side == "wrk":
                        started = time.perf_counter()
                        count, rate = await asyncio.to_thread(_wrk, address, job, seconds)
                        await _idle(http)
                        told[side].append((rate, count / (time.perf_counter() - started)))
                    else:
                        # As many as wrk got through: each makes the next one dearer.
                        told[side].append(await _worker(http, job, count))
                if program := shutil.which("nomad"):
                    job = await _register(http)
                    loops.append(await asyncio.to_thread(_loop, program, address, job, 10))
    whole = {
        side: result.add(f"{side}, until all is scheduled too", "dispatches/s", [done for _, done in figures])
        for side, figures in told.items()
    }
    accepted = {
        side: result.add(f"{side}, until accepted", "dispatches/s", [rate for rate, _ in figures])
        for side, figures in told.items()
    }
    result.ratio("worker / wrk, until accepted", accepted["worker"], accepted["wrk"])
    share = result.ratio("worker / wrk, until all is scheduled too", whole["worker"], whole["wrk"])
    if loops:
        loop = result.add("a loop over `nomad job dispatch`", "dispatches/s", loops)
        result.ratio("worker / that loop", accepted["worker"], loop)
    result.target("of wrk's rate", share, least=0.9)
    return result


async def _worker(http: httpx.AsyncClient, job: str, count: int) -> tuple[float, float]:
    """The rate of acceptance, and that until Nomad is done with all of them."""
    # Nomad will not place them: a worker that minds its pace would wait for that.
    settings = {"WORKER_DISPATCH_CONCURRENCY": str(CONNECTIONS), "WORKER_DISPATCH_PACE": "fixed"}
    settings["WORKER_NOMAD_WAITING_LIMIT"] = "0"
    if token := os.environ.get("NOMAD_TOKEN"):
        settings["NOMAD_TOKEN"] = token
    fields: dict[str, str | bytes] = {"job": job, "payload": b"x" * 64, "detach": "1"}
    fields["meta"] = '{"who":"ada"}'
    address = str(http.base_url).rstrip("/")
    async with redis_server() as (server, client), worker(server.url, address, **settings):
        started = time.perf_counter()
        sent = await send(client, count, fields)
        accepted = await all_acknowledged(client, sent[-1], 120) - started
        await _idle(http)
        return count / accepted, count / (time.perf_counter() - started)


def _wrk(address: str, job: str, seconds: int) -> tuple[int, float]:
    """How many dispatches wrk got through, and their rate."""
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
    requests, rate = re.search(r"(\d+) requests in", told), re.search(r"Requests/sec: *([\d.]+)", told)
    if not requests or not rate:
        raise ValueError(told)
    return int(requests[1]), float(rate[1])


def _loop(program: str, address: str, job: str, count: int) -> float:
    environment = {**os.environ, "NOMAD_ADDR": address}
    started = time.perf_counter()
    for number in range(count):
        command = [program, "job", "dispatch", "-detach", "-meta", "who=ada"]
        command += ["-idempotency-token", f"1795484592001-{number}", job, "-"]
        subprocess.run(command, input=b"x" * 64, env=environment, check=True, capture_output=True, timeout=30)
    return count / (time.perf_counter() - started)


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
    folder = Path(tempfile.mkdtemp(prefix="nomad-"))
    http, rpc, serf = free_ports(3)
    (folder / "agent.hcl").write_text(AGENT.format(http=http, rpc=rpc, serf=serf, data=folder / "data"))
    log = folder / "agent.log"
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    with log.open("wb") as output:
        agent = subprocess.Popen(
            [program, "agent", "-dev", "-config", str(folder / "agent.hcl")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | {"TMPDIR": str(folder)},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{http}"
        wait_until_ready(address, agent, log)
        yield address
    finally:
        agent.send_signal(signal.SIGINT)
        try:
            agent.wait(15)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        shutil.rmtree(folder, ignore_errors=True)
