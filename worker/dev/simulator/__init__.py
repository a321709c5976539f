"""A Nomad cluster in memory, with Nomad's HTTP interface, for development and tests.

Use `Simulator` inside a test, or `serve` for a process of its own. It answers as recorded from Nomad 2.0.5.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker.dev.simulator import nodes as node_writes
from worker.dev.simulator.acl import Acl
from worker.dev.simulator.cluster import Cluster, Options, Record, new_uuid
from worker.dev.simulator.commands import collect_garbage, deregister, preempt, register, stop_alloc
from worker.dev.simulator.dispatching import Dispatched, DispatchRequest, dispatch
from worker.dev.simulator.drivers import DRIVERS, Driver
from worker.dev.simulator.engine import Engine, Timings
from worker.dev.simulator.jobfile import canonical_job
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.misbehave import Fault, Faults
from worker.dev.simulator.server import HttpServer
from worker.dev.simulator.state import Node, State

__all__ = ["Fault", "Faults", "Node", "Options", "Record", "Simulator", "Timings", "serve"]


class Simulator:
    """A simulated Nomad cluster that listens on loopback.

    Example:
        async with Simulator(jobs=[job], nodes=2) as nomad:
            client = connect(nomad.address)

    Args:
        jobs: job specifications in the API's shape; defaults are filled in.
        host: address to listen on.
        port: 0 takes a free one.
        nodes: how many nodes there are ("node-1", "node-2", ... in "dc1"), or the nodes themselves.
        acl: permissions, see `Acl.from_config`; None: ACLs are off.
        heartbeat_seconds: between the `{}` lines of event streams.
        event_buffer_size: how many frames a stream can replay.
        update_seconds: how long clients gather reports; 0: each report at once.
        scheduling_seconds: from a new evaluation to its plan.
        task_speed: by how much the delays and timeouts of job specifications are shortened.
        max_connections_per_client: beyond it the answer is 429; streams do not count; 0: no limit.
        drivers: task drivers by name.
        directory: where tasks get their folders; a temporary one by default.
    """

    def __init__(
        self,
        jobs: Iterable[Mapping[str, Any]] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        nodes: int | Iterable[Node] = 2,
        acl: Mapping[str, Any] | None = None,
        heartbeat_seconds: float = 30.0,
        event_buffer_size: int = 100,
        update_seconds: float = 0.2,
        scheduling_seconds: float = 0.002,
        task_speed: float = 1.0,
        max_connections_per_client: int = 100,
        drivers: Mapping[str, Driver] = DRIVERS,
        directory: Path | None = None,
    ) -> None:
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="nomad-simulator-")
        options = Options(
            heartbeat_seconds=heartbeat_seconds,
            event_buffer_size=event_buffer_size,
            max_connections_per_client=max_connections_per_client,
            timings=Timings(scheduling_seconds, update_seconds, task_speed),
        )
        folder = directory or Path(self._temporary.name if self._temporary else "")
        self.cluster = Cluster(folder, options, acl, drivers)
        self._server = HttpServer(self.cluster)
        self._wanted = host, port
        self._nodes = nodes
        self._jobs = list(jobs)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the nodes, register the jobs and listen."""
        made = (
            [Node(new_uuid(), f"node-{number}") for number in range(1, self._nodes + 1)]
            if isinstance(self._nodes, int)
            else self._nodes
        )
        for node in made:
            node_writes.join(self.state, node, self.cluster.now())
        for job in self._jobs:
            self.register(job)
        self.engine.start()
        await self._server.start(*self._wanted)

    async def close(self) -> None:
        """Stop listening, end all tasks and remove their folders."""
        await self._server.stop()
        await self.engine.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def address(self) -> str:
        """The base URL, for NOMAD_ADDR."""
        return f"http://{self._server.host}:{self._server.port}"

    @property
    def state(self) -> State:
        """The servers' tables."""
        return self.cluster.state

    @property
    def engine(self) -> Engine:
        """The loop of servers and clients."""
        return self.cluster.engine

    @property
    def acl(self) -> Acl:
        """Tokens and policies."""
        return self.cluster.acl

    @property
    def faults(self) -> Faults:
        """Planned faults."""
        return self.cluster.faults

    @property
    def record(self) -> Record:
        """Accepted dispatches and requests by route."""
        return self.cluster.record

    def register(self, job: Mapping[str, Any]) -> Job:
        """Register a job; its namespace is made if there is none.

        Raises:
            InvalidJob: Nomad would refuse it.
            Refused: Nomad would refuse it.
        """
        canonical = canonical_job(dict(job))
        self.state.namespaces.setdefault(canonical.get("Namespace") or "default", self.state.index)
        return register(self.state, canonical, self.cluster.now())[0]

    def dispatch(self, job_id: str, **fields: Any) -> Dispatched:
        """Dispatch without HTTP; fields as of `DispatchRequest`.

        Raises:
            Refused: Nomad would refuse it.
        """
        request = DispatchRequest(job_id, **fields)
        answer = dispatch(self.state, request, self.cluster.now())
        if answer.eval_id:
            self.record.accepted(request, answer.job_id, self.cluster.now())
        return answer

    def job(self, job_id: str, namespace: str = "default") -> Job:
        """Return a job.

        Raises:
            KeyError: there is none.
        """
        return self.state.jobs[namespace, job_id]

    def stop_job(self, job_id: str, namespace: str = "default", *, purge: bool = False) -> None:
        """Stop or purge a job, as an operator does."""
        deregister(self.state, namespace, job_id, self.cluster.now(), purge=purge)

    def stop_alloc(self, alloc_id: str) -> None:
        """Stop one allocation, as an operator does; it is replaced."""
        stop_alloc(self.state, self.state.allocs[alloc_id], self.cluster.now())

    def preempt_alloc(self, alloc_id: str) -> None:
        """Evict one allocation in favour of an imagined one."""
        preempt(self.state, self.state.allocs[alloc_id], new_uuid(), self.cluster.now())

    def collect_garbage(self) -> list[str]:
        """Remove what has ended; return the IDs of the jobs."""
        return collect_garbage(self.state, self.cluster.now())

    def lose_node(self, name: str) -> None:
        """Cut a node off: its allocations are lost or unknown, its tasks go on."""
        self.engine.lose_node(self.engine.node(name))

    def return_node(self, name: str) -> None:
        """Let a lost node come back."""
        self.engine.return_node(self.engine.node(name))

    def drain_node(self, name: str, deadline_seconds: float = -1) -> None:
        """Drain a node: -1 at once, 0 without a limit, else batch jobs may go on for a time."""
        self.engine.drain_node(self.engine.node(name), int(deadline_seconds * 1e9))

    def resize_node(self, name: str, *, cpu: int | None = None, memory: int | None = None) -> None:
        """Change what a node offers, in MHz and MB."""
        node_writes.resize(self.state, self.engine.node(name), self.cluster.now(), cpu=cpu, memory=memory)

    async def stop_server(self) -> None:
        """Stop the servers: streams end, connections are refused. Tasks go on."""
        self._wanted = self._server.host, self._server.port
        await self._server.stop()

    async def start_server(self, *, index_back: int = 0) -> None:
        """Start the servers again on the same port, with an empty event buffer.

        Args:
            index_back: by how much the index goes back, as after a restore of an older snapshot.
        """
        self.cluster.ring.clear()
        self.state.go_back(index_back)
        await self._server.start(*self._wanted)


async def serve(
    host: str = "127.0.0.1",
    port: int = 4646,
    jobs: Iterable[Mapping[str, Any]] = (),
    *,
    started: asyncio.Future[str] | None = None,
    **options: Any,
) -> None:
    """Run a simulator until the task is cancelled.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        jobs: job specifications in the API's shape.
        started: gets the base URL as soon as it listens.
        **options: as of `Simulator`.
    """
    async with Simulator(jobs, host=host, port=port, **options) as simulator:
        if started is not None:
            started.set_result(simulator.address)
        await asyncio.Event().wait()
