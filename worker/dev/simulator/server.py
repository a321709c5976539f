"""The simulator's HTTP server: finds the route, carries out planned faults, and turns errors into text.

Knows nothing of what the routes do. Paths are matched decoded: `%2F` and `/` in a job ID are the same.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web

from worker.dev.simulator import routes_cluster, routes_control, routes_jobs, routes_reads
from worker.dev.simulator.acl import Denied
from worker.dev.simulator.call import Call, Fail, decoded_path
from worker.dev.simulator.cluster import Cluster
from worker.dev.simulator.misbehave import Fault
from worker.dev.simulator.stream import event_stream

Handler = Callable[[], Awaitable[web.StreamResponse]]
Exact = Callable[[Call], Awaitable[web.StreamResponse]]
WithId = Callable[[Call, str], Awaitable[web.StreamResponse]]

_MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_HEAD_BYTES = 1024 * 1024
_TOO_MANY = b"Your IP is issuing too many concurrent connections, please rate limit your calls\n"
_LOOK_SECONDS = 0.05
_NO_LEADER = "No cluster leader"

_EXACT: dict[str, tuple[str, Exact]] = {
    "/v1/jobs": ("jobs", routes_jobs.jobs),
    "/v1/allocations": ("allocations", routes_reads.allocations),
    "/v1/evaluations": ("evaluations", routes_reads.evaluations),
    "/v1/evaluations/count": ("evaluations.count", routes_reads.count_evaluations),
    "/v1/event/stream": ("stream", event_stream),
    "/v1/status/leader": ("leader", routes_cluster.leader),
    "/v1/status/peers": ("peers", routes_cluster.peers),
    "/v1/regions": ("regions", routes_cluster.regions),
    "/v1/agent/health": ("health", routes_cluster.health),
    "/v1/agent/self": ("agent", routes_cluster.agent_self),
    "/v1/namespaces": ("namespaces", routes_cluster.namespaces),
    "/v1/namespace": ("namespace", routes_cluster.namespace),
    "/v1/system/gc": ("gc", routes_cluster.collect),
    "/v1/metrics": ("metrics", routes_cluster.metrics),
    "/v1/nodes": ("nodes", routes_cluster.node_list),
    "/v1/acl/bootstrap": ("acl.bootstrap", routes_cluster.acl_bootstrap),
    "/v1/acl/token": ("acl.token", routes_cluster.acl_token),
}
_PREFIXES: dict[str, tuple[str, WithId]] = {
    "/v1/allocation/": ("allocation", routes_reads.allocation),
    "/v1/evaluation/": ("evaluation", routes_reads.evaluation),
    "/v1/client/fs/logs/": ("logs", routes_reads.logs),
    "/v1/node/": ("node", routes_cluster.node),
    "/v1/namespace/": ("namespace", routes_cluster.namespace),
    "/v1/acl/token/": ("acl.token", routes_cluster.acl_token),
    "/v1/acl/policy/": ("acl.policy", routes_cluster.acl_policy),
}
_JOB = "/v1/job/"
_JOB_SUFFIXES: dict[str, tuple[str, WithId]] = {
    "/dispatch": ("dispatch", routes_jobs.dispatch_job),
    "/summary": ("job.summary", routes_jobs.summary),
    "/allocations": ("job.allocations", routes_jobs.allocations),
    "/evaluations": ("job.evaluations", routes_jobs.evaluations),
    "/deployment": ("job.deployment", routes_jobs.deployment),
    "/deployments": ("job.deployments", routes_jobs.deployments),
    "/versions": ("job.versions", routes_jobs.versions),
    "/submission": ("job.submission", routes_jobs.submission),
    "/evaluate": ("job.evaluate", routes_jobs.evaluate),
}
# These answer without a leader; streams even go on with their heartbeats.
_LEADERLESS_FINE = {"stream", "regions", "agent", "metrics"}


def find(call: Call) -> tuple[str, Handler] | None:
    """Return the name and handler of a request's route; None for an unknown path."""
    path = call.path
    if path in _EXACT:
        name, exact = _EXACT[path]
        return name, partial(exact, call)
    if path.startswith(_JOB):
        for suffix, (name, route) in _JOB_SUFFIXES.items():
            if path.endswith(suffix):
                return name, partial(route, call, path[len(_JOB) : -len(suffix)])
        name = "job.stop" if call.method == "DELETE" else "job"
        return name, partial(routes_jobs.job, call, path[len(_JOB) :])
    for prefix, (name, route) in _PREFIXES.items():
        if path.startswith(prefix):
            return name, partial(route, call, path.removeprefix(prefix))
    return None


class _Gate(asyncio.Protocol):
    """Lets a connection in, or answers 429 and closes it when its address has too many."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP transports are
        if self._server.full(transport):
            length = len(_TOO_MANY)
            head = f"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: {length}"
            transport.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + _TOO_MANY)
            transport.close()
            return
        protocol = self._server.protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class HttpServer:
    """Serves one cluster on one address."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._transports: set[asyncio.Transport] = set()
        self._streaming: set[asyncio.BaseTransport] = set()
        self._agents: dict[asyncio.Transport, str] = {}
        self.host = ""
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            max_line_size=2 * _MAX_HEAD_BYTES,
            max_field_size=_MAX_HEAD_BYTES,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Gate(self), host, port)
        address = self._listener.sockets[0].getsockname()
        self.host, self.port = host, address[1]

    async def stop(self) -> None:
        """Close the listener and every connection: clients read an end of file."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._cluster.faults.close_streams()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for transport in tuple(self._transports):
            transport.abort()
        self._transports.clear()

    def protocol(self) -> asyncio.Protocol:
        """Return the handler of one new connection."""
        assert self._runner is not None and self._runner.server is not None  # noqa: S101, PT018 - we listen
        return self._runner.server()

    def full(self, transport: asyncio.Transport) -> bool:
        """Whether the address of a new connection has too many already; notes the connection if not."""
        self._transports = {known for known in self._transports if not known.is_closing()}
        limit = self._cluster.options.max_connections_per_client
        address = (transport.get_extra_info("peername") or ("",))[0]
        same = sum(
            (known.get_extra_info("peername") or ("",))[0] == address
            for known in self._transports
            if known not in self._streaming
        )
        if limit and same >= limit:
            return True
        self._transports.add(transport)
        return False

    def _note(self, request: web.Request) -> None:
        """Keep record of whose connection it is, with the first request that comes over it."""
        transport, agent = request.transport, request.headers.get("User-Agent", "")
        if transport is None or transport in self._agents:
            return
        self._agents = {known: name for known, name in self._agents.items() if not known.is_closing()}
        self._agents[transport] = agent
        most, now = self._cluster.record.connections, list(self._agents.values()).count(agent)
        most[agent] = max(most.get(agent, 0), now)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if len(request.path_qs) > _MAX_HEAD_BYTES:
            response = _text(431, "431 Request Header Fields Too Large")
            response.force_close()
            return response
        call = Call(self._cluster, request, decoded_path(request))
        if call.path.startswith(routes_control.PREFIX):
            return await self._answer(call, lambda: routes_control.control(call))
        raw_path = request.rel_url.raw_path
        if "//" in raw_path:
            return web.Response(status=307, headers={"Location": raw_path.replace("//", "/")})
        found = find(call)
        if found is None:
            return web.Response(status=404)
        name, handler = found
        self._cluster.record.requests[name] += 1
        if name != "stream":
            return await self._with_faults(call, name, handler)
        transport = request.transport
        assert transport is not None  # noqa: S101 - the request has just arrived
        self._streaming.add(transport)
        try:
            return await self._with_faults(call, name, handler)
        finally:
            self._streaming.discard(transport)

    async def _with_faults(self, call: Call, name: str, handler: Handler) -> web.StreamResponse:
        late_seconds, lose_answer = 0.0, False
        for fault in self._cluster.faults.take(name):
            match fault.kind:
                case "delay":
                    await asyncio.sleep(fault.seconds)
                case "load":
                    await _under_load(fault)
                case "late_answer":
                    late_seconds += fault.seconds
                case "respond":
                    return _text(fault.status, fault.text)
                case "drop":
                    return _cut(call)
                case "hang":
                    await _hang(call)
                    return _cut(call)
                case "lose_answer":
                    lose_answer = True
        leaderless = self._leaderless(call, name)
        response = await (leaderless if leaderless is not None else self._answer(call, handler))
        if late_seconds:
            await asyncio.sleep(late_seconds)
        return _cut(call) if lose_answer else response

    def _leaderless(self, call: Call, name: str) -> Awaitable[web.StreamResponse] | None:
        seconds = self._cluster.faults.leaderless_seconds
        if seconds is None or name in _LEADERLESS_FINE or (call.stale and call.method == "GET"):
            return None
        text = _NO_LEADER
        if name == "health":
            text = '{"server":{"ok":false,"message":"No cluster leader"}}'
        return _later(seconds, _text(500, text))

    async def _answer(self, call: Call, handler: Handler) -> web.StreamResponse:
        try:
            return await handler()
        except Fail as error:
            headers = {} if error.index is None else call.read_headers(error.index)
            return _text(error.status, error.text, headers)
        except Denied:
            return _text(403, "Permission denied")


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    response = web.Response(status=status, text=text, headers=headers)
    response.content_type = "text/plain"
    return response


async def _under_load(fault: Fault) -> None:
    fault.at_once += 1
    seconds = fault.seconds * (1 + (fault.at_once / fault.knee) ** 2)
    fault.held_seconds += seconds
    fault.busy_seconds += seconds / fault.at_once
    try:
        await asyncio.sleep(seconds)
    finally:
        fault.at_once -= 1


async def _later(seconds: float, response: web.StreamResponse) -> web.StreamResponse:
    await asyncio.sleep(seconds)
    return response


async def _hang(call: Call) -> None:
    """Wait until the client gives up."""
    while call.request.transport is not None and not call.request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)  # aiohttp tells a handler of a lost client by nothing else


def _cut(call: Call) -> web.StreamResponse:
    """Cut the connection; the response returned goes nowhere."""
    if call.request.transport is not None:
        with contextlib.suppress(OSError):
            call.request.transport.abort()
    return web.Response()
