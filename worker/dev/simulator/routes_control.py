"""The `/_simulator/` endpoints: plan faults, move nodes, read the record. No part of Nomad's interface.

Requests and answers are JSON; a mistake is 400 with a text. Everything here can be done in Python too.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from worker.dev.simulator import nodes
from worker.dev.simulator.call import Call, Fail
from worker.dev.simulator.cluster import new_uuid
from worker.dev.simulator.commands import collect_garbage, deregister, preempt, stop_alloc
from worker.dev.simulator.misbehave import Fault
from worker.dev.simulator.records import Allocation
from worker.dev.simulator.routes_cluster import body_of

_MODES = {"leaderless_seconds", "phantoms", "mute_new_streams", "stream_life_seconds"}
_FAULT_FIELDS = {"route", "kind", "seconds", "status", "text", "times", "after", "probability", "knee"}


async def faults(call: Call) -> web.Response:
    """GET the plan, POST one more fault, DELETE all (modes too) or one (`?id=`)."""
    plan = call.cluster.faults
    if call.method == "POST":
        given = await body_of(call)
        if unknown := given.keys() - _FAULT_FIELDS:
            raise Fail(400, f"unknown fields: {', '.join(sorted(unknown))}")
        try:
            fault = plan.add(**given)
        except TypeError as error:
            raise Fail(400, str(error)) from None
        return call.json(asdict(fault))
    if call.method == "DELETE":
        if call.query.get("id"):
            return call.json({"removed": plan.remove(int(call.query["id"]))})
        plan.clear()
        return call.json({})
    shown: list[Fault] = plan.planned
    return call.json(
        {
            "planned": [asdict(fault) for fault in shown],
            "open_streams": len(plan.streams),
            **{name: getattr(plan, name) for name in sorted(_MODES)},
        }
    )


async def modes(call: Call) -> web.Response:
    """POST `leaderless_seconds`, `stream_life_seconds` (null: off), `phantoms`, `mute_new_streams`."""
    given = await body_of(call)
    plan = call.cluster.faults
    for name in _MODES & given.keys():
        setattr(plan, name, given[name])
    return call.json({})


async def streams(call: Call) -> web.Response:
    """POST `{"action": "close" | "mute" | "unmute" | "skip_frames", "frames": 1}`."""
    given = await body_of(call)
    plan = call.cluster.faults
    match given.get("action"):
        case "close":
            return call.json({"closed": plan.close_streams()})
        case "mute" | "unmute":
            plan.mute_streams(muted=given["action"] == "mute")
        case "skip_frames":
            call.cluster.ring.skip(int(given.get("frames", 1)))
        case other:
            raise Fail(400, f"unknown action {other!r}")
    return call.json({})


async def index_back(call: Call) -> web.Response:
    """POST `{"by": N}`: the index goes back, the ring is empty, streams end: a restored, older server."""
    by = int((await body_of(call)).get("by", 0))
    return call.json({"index": go_back(call, by)})


def go_back(call: Call, by: int) -> int:
    """Turn the index back; return it."""
    cluster = call.cluster
    cluster.state.go_back(by)
    cluster.ring.clear()
    cluster.faults.close_streams()
    return cluster.state.index


async def node(call: Call, path: str) -> web.Response:
    """POST to a node by name or ID: lose, return, drain, undrain, eligible, ineligible, resize."""
    name, _, action = path.partition("/")
    cluster, now = call.cluster, call.cluster.now()
    try:
        found = cluster.engine.node(name)
    except KeyError:
        raise Fail(404, f"no node {name!r}") from None
    given = await body_of(call) if call.request.can_read_body else {}
    match action:
        case "lose":
            cluster.engine.lose_node(found)
        case "return":
            cluster.engine.return_node(found)
        case "drain":
            cluster.engine.drain_node(found, int(given.get("deadline_seconds", -1) * 1e9))
        case "undrain":
            cluster.engine.end_drain(found, eligible=True)
        case "eligible" | "ineligible":
            nodes.set_eligible(cluster.state, found, now, eligible=action == "eligible")
        case "resize":
            nodes.resize(cluster.state, found, now, cpu=given.get("cpu"), memory=given.get("memory"))
        case _:
            raise Fail(400, f"unknown action {action!r}")
    return call.json(nodes.stub(found))


async def job(call: Call, path: str) -> web.Response:
    """POST to a job (`<id>/purge`, `<id>/stop`): as an operator does it, behind everybody's back."""
    job_id, _, action = path.rpartition("/")
    if action not in {"purge", "stop"}:
        raise Fail(400, f"unknown action {action!r}")
    cluster = call.cluster
    stopped = deregister(cluster.state, call.namespace, job_id, cluster.now(), purge=action == "purge")
    return call.json(stopped.answer())


async def alloc(call: Call, path: str) -> web.Response:
    """POST to an allocation (`<id>/stop`, `<id>/preempt`)."""
    alloc_id, _, action = path.partition("/")
    cluster = call.cluster
    found: Allocation | None = cluster.state.allocs.get(alloc_id)
    if found is None:
        raise Fail(404, f"no allocation {alloc_id!r}")
    match action:
        case "stop":
            stop_alloc(cluster.state, found, cluster.now())
        case "preempt":
            preempt(cluster.state, found, new_uuid(), cluster.now())
        case _:
            raise Fail(400, f"unknown action {action!r}")
    return call.json({})


async def collect(call: Call) -> web.Response:
    """POST: collect garbage now; the answer lists the IDs of the jobs that went."""
    return call.json({"removed": collect_garbage(call.cluster.state, call.cluster.now())})


async def acl(call: Call) -> web.Response:
    """POST `{"policies": {...}, "tokens": [...], "revoke": [...]}`; see `Acl.from_config`."""
    given, cluster = await body_of(call), call.cluster
    extra = type(cluster.acl).from_config(given, cluster.now())
    cluster.acl.policies.update(extra.policies)
    cluster.acl.tokens.update(extra.tokens)
    for token in given.get("revoke", ()):
        cluster.acl.revoke(token)
    return call.json({"tokens": [token.view() for token in extra.tokens.values()]})


async def log(call: Call) -> web.Response:
    """GET: accepted dispatches (`?since=` skips so many), runs of tasks, requests by route, connections."""
    record = call.cluster.record
    since = int(call.query.get("since", "0"))
    return call.json(
        {
            "dispatches": record.dispatches[since:],
            "runs": call.cluster.engine.clients.runs,
            "requests": dict(record.requests),
            "connections": record.connections,
            "index": call.cluster.state.index,
        }
    )


Route = Callable[[Call], Awaitable[web.Response]]
PathRoute = Callable[[Call, str], Awaitable[web.Response]]
PREFIX = "/_simulator/"
EXACT: dict[str, Route] = {
    "faults": faults,
    "modes": modes,
    "streams": streams,
    "index_back": index_back,
    "gc": collect,
    "acl": acl,
    "log": log,
}
UNDER: dict[str, PathRoute] = {"nodes/": node, "jobs/": job, "allocations/": alloc}


async def control(call: Call) -> web.StreamResponse:
    """Find the endpoint of a control request."""
    path = call.path.removeprefix(PREFIX)
    if path in EXACT:
        return await EXACT[path](call)
    for prefix, route in UNDER.items():
        if path.startswith(prefix):
            return await route(call, path.removeprefix(prefix))
    known: Any = sorted([*EXACT, *(f"{prefix}..." for prefix in UNDER)])
    raise Fail(404, f"no such control; there are: {', '.join(known)}")
