"""The endpoints of the agent, nodes, namespaces, garbage collection and ACLs.

Knows nothing of jobs.
"""

import asyncio
from typing import Any

from aiohttp import web

from worker.dev.simulator import nodes
from worker.dev.simulator.acl import Denied, Token, UnknownSignature, read_rules
from worker.dev.simulator.call import SIGNATURE, Call, Fail
from worker.dev.simulator.commands import collect_garbage
from worker.dev.simulator.gojson import Malformed, decode
from worker.dev.simulator.state import Node

_UUID_LENGTH = 36
VERSION = "2.0.5"


async def body_of(call: Call) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        Fail: 400.
    """
    try:
        value = decode(await call.request.read())
    except Malformed as error:
        raise Fail(400, str(error)) from None
    return value if isinstance(value, dict) else {}


def _address(call: Call) -> str:
    host = call.request.host
    return host if ":" in host else f"{host}:4646"


async def leader(call: Call) -> web.Response:
    """GET /v1/status/leader."""
    call.allow("GET")
    return call.json(_address(call))


async def peers(call: Call) -> web.Response:
    """GET /v1/status/peers."""
    call.allow("GET")
    return call.json([_address(call)])


async def regions(call: Call) -> web.Response:
    """GET /v1/regions."""
    call.allow("GET")
    return call.json(["global"])


async def health(call: Call) -> web.Response:
    """GET /v1/agent/health."""
    call.allow("GET")
    parts = [call.query["type"]] if call.query.get("type") else ["client", "server"]
    return call.json({part: {"message": "ok", "ok": True} for part in parts})


async def agent_self(call: Call) -> web.Response:
    """GET /v1/agent/self: what clients read of it."""
    call.allow("GET")
    try:
        token = call.acl.resolve(call.secret(), call.cluster.now())
    except UnknownSignature:
        raise Fail(500, f"ACL token not found or invalid workload identity: {SIGNATURE}") from None
    if not token.management:
        raise Denied
    index = str(call.cluster.state.index)
    config = {
        "ACL": {"Enabled": call.acl.enabled},
        "Datacenter": "dc1",
        "Region": "global",
        "Version": {"Version": VERSION},
    }
    tags = {"build": VERSION, "region": "global", "role": "nomad"}
    server = {
        "bootstrap": "true",
        "known_regions": "1",
        "leader": "true",
        "leader_addr": _address(call),
        "server": "true",
    }
    raft = {"applied_index": index, "last_log_index": index, "state": "Leader"}
    return call.json(
        {
            "config": config,
            "member": {"Name": "simulator.global", "Status": "alive", "Tags": tags},
            "stats": {"nomad": server, "raft": raft},
        }
    )


async def namespaces(call: Call) -> web.Response:
    """GET /v1/namespaces: those the token can use, nothing else is needed."""
    call.allow("GET")
    token, state = call.token(), call.cluster.state
    shown = [
        {
            "Capabilities": None,
            "ConsulConfiguration": None,
            "CreateIndex": index,
            "Description": "Default shared namespace" if name == "default" else "",
            "Hash": "C7UbjDwBK0dK8wQq7Izg7SJIzaV+lIo2X7wRtzY3pSw=",
            "Meta": None,
            "ModifyIndex": index,
            "Name": name,
            "NodePoolConfiguration": None,
            "OptionalExtraClaims": None,
            "Quota": "",
            "RequiredExtraClaims": None,
            "VaultConfiguration": None,
        }
        for name, index in sorted(state.namespaces.items())
        if token.management or call.acl.capabilities(token, name)
    ]
    return call.read(shown, max(state.namespaces.values()))


async def namespace(call: Call, name: str = "") -> web.Response:
    """PUT and POST /v1/namespace[/:name]."""
    call.allow("PUT", "POST")
    call.acl.require(call.token(), "")
    given = await body_of(call)
    call.cluster.state.index += 1
    index = call.cluster.state.index
    call.cluster.state.namespaces.setdefault(given.get("Name") or name, index)
    return web.Response(headers={"X-Nomad-Index": str(index)})


async def collect(call: Call) -> web.Response:
    """PUT /v1/system/gc: answers at once, works in the background."""
    call.allow("PUT", "POST")
    call.require("")
    cluster = call.cluster
    asyncio.get_running_loop().call_later(
        cluster.options.timings.scheduling_seconds, lambda: collect_garbage(cluster.state, cluster.now())
    )
    return web.Response()


async def metrics(call: Call) -> web.Response:
    """GET /v1/metrics: job counts only."""
    call.allow("GET")
    if call.query.get("format") == "prometheus":
        raise Fail(415, "Prometheus is not enabled")
    statuses = [job.status for job in call.cluster.state.jobs.values()]
    gauges = [
        {"Name": f"nomad.nomad.job_status.{name}", "Value": statuses.count(name)}
        for name in ("dead", "pending", "running")
    ]
    return call.json({"Counters": [], "Gauges": gauges, "Points": [], "Samples": []})


async def node_list(call: Call) -> web.Response:
    """GET /v1/nodes."""
    call.allow("GET")
    call.require("")
    state = call.cluster.state
    await call.blocking(lambda: state.table_index["nodes"])
    prefix = call.query.get("prefix", "")
    rows = [nodes.stub(found) for _, found in sorted(state.nodes.items()) if found.id.startswith(prefix)]
    return call.read(rows, state.table_index["nodes"])


async def node(call: Call, path: str) -> web.Response:
    """GET /v1/node/:id, its allocations, and PUT or POST of its drain and eligibility."""
    node_id, _, action = path.partition("/")
    call.require("")
    found = _node(call, node_id)
    cluster, state = call.cluster, call.cluster.state
    if action == "drain":
        call.allow("PUT", "POST")
        given = await body_of(call)
        spec = given.get("DrainSpec")
        if spec:
            index = cluster.engine.drain_node(found, int(spec.get("Deadline") or 0))
        else:
            index = cluster.engine.end_drain(found, eligible=bool(given.get("MarkEligible")))
        answer = {"EvalCreateIndex": 0, "EvalIDs": None, "Index": index, "NodeModifyIndex": index}
        return call.json(answer, index=index)
    if action == "eligibility":
        call.allow("PUT", "POST")
        eligible = (await body_of(call)).get("Eligibility") == "eligible"
        index = nodes.set_eligible(state, found, cluster.now(), eligible=eligible)
        answer = {"EvalCreateIndex": 0, "EvalIDs": None, "Index": index, "NodeModifyIndex": 0}
        return call.json(answer, index=index)
    call.allow("GET")
    if action == "allocations":
        rows = [alloc for _, alloc in sorted(found.allocs.items())]
        return call.read(rows, state.table_index["allocs"])
    await call.blocking(lambda: found.modify_index)
    return call.read(nodes.view(found), found.modify_index)


def _node(call: Call, node_id: str) -> Node:
    if len(node_id) != _UUID_LENGTH:
        raise Fail(500, "node lookup failed: index error: UUID must be 36 characters")
    found = call.cluster.state.nodes.get(node_id)
    if found is None:
        raise Fail(404, "node not found", index=call.cluster.state.table_index["nodes"])
    return found


async def acl_bootstrap(call: Call) -> web.Response:
    """POST /v1/acl/bootstrap."""
    call.allow("PUT", "POST")
    acl, state = call.acl, call.cluster.state
    _acl_enabled(call)
    if acl.bootstrapped:
        raise Fail(400, f"ACL bootstrap already done (reset index: {acl.bootstrapped})")
    raw = await call.request.read()
    secret = (await body_of(call)).get("BootstrapSecret") if raw else None
    state.index += 1
    token = acl.bootstrap(state.index, call.cluster.now(), secret)
    return call.json(token.view(), index=state.index)


async def acl_token(call: Call, path: str = "") -> web.Response:
    """GET /v1/acl/token/self, POST /v1/acl/token, DELETE /v1/acl/token/:accessor."""
    if path == "self":
        call.allow("GET")
        return _token_self(call)
    _acl_enabled(call)
    call.acl.require(call.token(), "")
    cluster = call.cluster
    if call.method == "DELETE":
        cluster.acl.revoke(path)
        return web.Response(headers={"X-Nomad-Index": str(cluster.state.index)})
    call.allow("PUT", "POST")
    given = await body_of(call)
    ttl = int(given.get("ExpirationTTL") or 0)
    token = call.acl.create(
        given.get("Policies") or (),
        cluster.now(),
        ttl=ttl,
        name=given.get("Name") or "",
        management=given.get("Type") == "management",
        secret=given.get("SecretID"),
    )
    cluster.state.index += 1
    token.index = cluster.state.index
    return call.json(token.view(), index=cluster.state.index)


def _token_self(call: Call) -> web.Response:
    try:
        token: Token = call.acl.resolve(call.secret(), call.cluster.now())
    except UnknownSignature:
        raise Fail(500, SIGNATURE) from None
    shown = token.view()
    if not call.acl.enabled:
        shown |= {"Type": "client", "Hash": None, "CreateTime": "0001-01-01T00:00:00Z", "Global": False}
    return call.read(shown, token.index)


async def acl_policy(call: Call, name: str) -> web.Response:
    """PUT, POST and DELETE /v1/acl/policy/:name."""
    _acl_enabled(call)
    call.acl.require(call.token(), "")
    if call.method == "DELETE":
        call.acl.policies.pop(name, None)
    else:
        call.allow("PUT", "POST")
        call.acl.policies[name] = read_rules((await body_of(call)).get("Rules") or "")
    call.cluster.state.index += 1
    return web.Response(headers={"X-Nomad-Index": str(call.cluster.state.index)})


def _acl_enabled(call: Call) -> None:
    if not call.acl.enabled:
        raise Fail(400, "ACL support disabled")
