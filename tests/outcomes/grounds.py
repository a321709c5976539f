"""The Nomads that jobs end on: the simulator, and a real one with a second client that may be killed.

Both are moved over Nomad's own HTTP interface, save for the death of a client.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tests.contract.nomad_cluster import Cluster
from tests.nomad_agent import CLIENT_OPTIONS, Agent, agent_folder, free_ports
from tests.simulator.cluster import SECOND, group, job, shell
from worker.dev.simulator import Node, Simulator
from worker.dev.simulator.cluster import new_uuid

VICTIMS = 12
"""Nodes of the simulator that may be drained, lost and filled, one for each situation that does so."""
PREEMPTION = {
    f"{scheduler}SchedulerEnabled": True for scheduler in ("System", "Batch", "Service", "SysBatch")
}
WAIT_SECONDS = 30.0

AGENT = """
name      = "{name}"
bind_addr = "127.0.0.1"
advertise {{ http = "127.0.0.1"  rpc = "127.0.0.1"  serf = "127.0.0.1" }}
ports {{ http = {http}  rpc = {rpc}  serf = {serf} }}
data_dir  = "{data}"
server {{
  min_heartbeat_ttl = "1s"
  heartbeat_grace   = "2s"
}}
client {{
  enabled    = true
  node_class = "{node_class}"
  servers    = {servers}
  options    = {{{client_options}  }}
}}
plugin "raw_exec" {{ config {{ enabled = true }} }}
"""


@dataclass
class Ground(Cluster):
    """One Nomad; `on` makes constraints that keep jobs where nobody harms them, or where somebody does."""

    drivers: frozenset[str] = frozenset()
    lost_within_seconds: float = 1.5
    """A task that runs for so long is still running when its killed client is missed."""
    may_harm: bool = True
    """Whether there is a node that may be drained, lost and filled."""

    async def add(self, job: dict[str, Any]) -> None:
        """Register a job in the API's shape."""
        await self.ask("PUT", "/v1/jobs", {"Job": job})
        self.registered.append(job["ID"])

    async def stop_job(self, job_id: str, *, purge: bool = False) -> None:
        await self.ask("DELETE", f"/v1/job/{quote(job_id, safe='')}{'?purge=true' if purge else ''}")

    async def stop_alloc(self, alloc_id: str) -> None:
        await self.ask("PUT", f"/v1/allocation/{alloc_id}/stop")

    async def collect_garbage(self) -> None:
        await self.ask("PUT", "/v1/system/gc")

    async def node_id(self, name: str) -> str:
        nodes = await self.ask("GET", "/v1/nodes")
        return next(str(node["ID"]) for node in nodes if node["Name"] == name)

    async def free_cpu(self, name: str) -> int:
        """MHz that a node offers to jobs, those running included."""
        node = await self.ask("GET", f"/v1/node/{await self.node_id(name)}")
        reserved = (node.get("ReservedResources") or {}).get("Cpu", {}).get("CpuShares", 0)
        return int(node["NodeResources"]["Cpu"]["CpuShares"]) - int(reserved)

    async def drain(self, name: str, deadline_seconds: float = -1) -> None:
        """Drain a node, by force without a deadline."""
        deadline = int(deadline_seconds * SECOND) if deadline_seconds > 0 else -1
        spec = {"DrainSpec": {"Deadline": deadline, "IgnoreSystemJobs": False}, "MarkEligible": False}
        await self.ask("PUT", f"/v1/node/{await self.node_id(name)}/drain", spec)

    async def undrain(self, name: str) -> None:
        node = f"/v1/node/{await self.node_id(name)}"
        await self.ask("PUT", f"{node}/drain", {"DrainSpec": None, "MarkEligible": True})

    async def job_status(self, job_id: str, wanted: str) -> None:
        """Wait for a job's status; asked again and again, for the API tells it no other way."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (await self.ask("GET", f"/v1/job/{quote(job_id, safe='')}"))["Status"] != wanted:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.1)

    async def replacement(self, job_id: str, alloc_id: str) -> str:
        """Wait until an allocation's replacement runs; asked again and again, as the one before."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                stubs = await self.ask("GET", f"/v1/job/{quote(job_id, safe='')}/allocations")
                by_id = {str(stub["ID"]): stub for stub in stubs}
                following = by_id.get(by_id[alloc_id]["NextAllocation"])
                if following is not None and following["ClientStatus"] == "running":
                    return str(following["ID"])
                await asyncio.sleep(0.1)

    async def stopped(self, alloc_id: str) -> None:
        """Wait until the servers want an allocation stopped; asked again and again, as the one before."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (await self.ask("GET", f"/v1/allocation/{alloc_id}"))["DesiredStatus"] != "stop":  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.1)

    async def status(self, name: str, *wanted: str) -> None:
        """Wait for one of these statuses of a node; asked again and again, as the one before."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                nodes = await self.ask("GET", "/v1/nodes")
                if any(node["Name"] == name and node["Status"] in wanted for node in nodes):
                    return
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def victim(self) -> AsyncIterator[str]:
        """The name of a node that the caller may harm."""
        if not self.may_harm:
            raise NotImplementedError
        yield ""

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Room for one more situation at the same time."""
        yield

    async def lose(self, name: str) -> None:
        """Kill a node's client; its tasks go on."""
        raise NotImplementedError

    async def restore(self, name: str) -> None:
        """Start a lost node's client again."""
        raise NotImplementedError

    async def preempt(self, name: str, alloc_id: str) -> None:
        """Evict the only allocation on a node in favour of a job of higher priority."""
        raise NotImplementedError


@dataclass
class SimulatedGround(Ground):
    """The simulator: a victim of one's own for everyone."""

    simulator: Simulator = field(default_factory=Simulator)
    victims: int = 0

    @asynccontextmanager
    async def victim(self) -> AsyncIterator[str]:
        self.victims += 1
        yield f"victim-{self.victims}"

    async def lose(self, name: str) -> None:
        self.simulator.lose_node(name)

    async def restore(self, name: str) -> None:
        self.simulator.return_node(name)

    async def preempt(self, name: str, alloc_id: str) -> None:  # noqa: ARG002 - the simulator needs no room
        self.simulator.preempt_alloc(alloc_id)


@dataclass
class RealGround(Ground):
    """A server with a client, `node-1`, and a second client, `node-2`, for one at a time to harm."""

    clients: dict[str, Agent] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(5))
    """Each task of a real agent brings two more processes along."""

    @asynccontextmanager
    async def victim(self) -> AsyncIterator[str]:
        async with self.turn:
            try:
                yield "node-2"
            finally:
                if self.clients["node-2"].process is None:
                    await self.restore("node-2")
                await self.undrain("node-2")

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        async with self.places:
            yield

    async def lose(self, name: str) -> None:
        await asyncio.to_thread(self.clients[name].kill)
        await self.status(name, "down", "disconnected")

    async def restore(self, name: str) -> None:
        self.clients[name].start()
        await self.status(name, "ready")

    async def preempt(self, name: str, alloc_id: str) -> None:  # noqa: ARG002 - it is in the way
        await self.ask("PUT", "/v1/operator/scheduler/configuration", {"PreemptionConfig": PREEMPTION})
        task = shell("sleep 2", Resources={"CPU": await self.free_cpu(name) - 50, "MemoryMB": 10})
        pinned = [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": name}]
        preemptor = job(f"preemptor-{uuid4().hex[:8]}", group(task), Priority=90, Constraints=pinned)
        del preemptor["ParameterizedJob"]
        await self.add(preemptor)


@asynccontextmanager
async def simulated(**options: Any) -> AsyncIterator[SimulatedGround]:
    """The simulator, ten times as fast with delays and timeouts as it is told to be."""
    names = [("node-1", ""), *((f"victim-{number}", "victim") for number in range(1, VICTIMS + 1))]
    nodes = [Node(new_uuid(), name, node_class=node_class) for name, node_class in names]
    async with Simulator(nodes=nodes, **{"update_seconds": 0.05, "task_speed": 10.0} | options) as simulator:
        yield SimulatedGround(simulator.address, drivers=nodes[0].drivers, simulator=simulator)


@asynccontextmanager
async def real(program: str) -> AsyncIterator[RealGround]:
    """Two real agents, started here and ended with everything they run."""
    with agent_folder() as folder:
        http, rpc, serf, http_2, rpc_2, serf_2 = free_ports(6)

        def agent(name: str, mode: str, **config: Any) -> Agent:
            text = AGENT.format(name=name, data=folder / name, client_options=CLIENT_OPTIONS, **config)
            (folder / name).mkdir()
            return Agent(program, folder, text, f"http://127.0.0.1:{config['http']}", name, [mode])

        first = agent("node-1", "-dev", http=http, rpc=rpc, serf=serf, node_class="", servers="[]")
        servers = json.dumps([f"127.0.0.1:{rpc}"])
        second = agent(
            "node-2", "-client", http=http_2, rpc=rpc_2, serf=serf_2, node_class="victim", servers=servers
        )
        ground = RealGround(first.address, lost_within_seconds=9, clients={"node-2": second})
        try:
            first.start()
            await asyncio.to_thread(first.wait_until_ready)
            second.start()
            await ground.status("node-2", "ready")
            ground.drivers = await _drivers(ground, "node-1")
            try:
                yield ground
            finally:
                await ground.clean()
        finally:
            await asyncio.to_thread(second.stop)
            await asyncio.to_thread(first.stop)
            _end_tasks(folder)


@asynccontextmanager
async def foreign(address: str) -> AsyncIterator[Ground]:
    """Somebody's Nomad, whose nodes are left alone."""
    ground = Ground(address, may_harm=False)
    nodes = await ground.ask("GET", "/v1/nodes")
    ground.drivers = await _drivers(ground, str(nodes[0]["Name"]))
    try:
        yield ground
    finally:
        await ground.clean()


def _end_tasks(folder: Path) -> None:
    """Kill what a killed client has left: tasks, and the processes that hold them, outlive it on purpose."""
    mark = str(folder).encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


async def _drivers(ground: Ground, name: str) -> frozenset[str]:
    node = await ground.ask("GET", f"/v1/node/{await ground.node_id(name)}")
    return frozenset(name for name, driver in node["Drivers"].items() if driver["Healthy"])
