"""The endpoints of allocations and evaluations, and a task's logs.

Knows nothing of how they come about.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from worker.dev.simulator.acl import Denied, UnknownSignature
from worker.dev.simulator.call import SIGNATURE, Call, Fail
from worker.dev.simulator.commands import stop_alloc
from worker.dev.simulator.records import Allocation, Evaluation

_HEX = re.compile(r"^[0-9a-fA-F-]*$")
_UUID_LENGTH = 36


def _check_prefix(prefix: str, what: str) -> None:
    for character in prefix.replace("-", ""):
        if not _HEX.match(character):
            problem = f"Invalid UUID: encoding/hex: invalid byte: U+{ord(character):04X} {character!r}"
            raise Fail(500, f"{what} lookup failed: index error: {problem}")
    if len(prefix.replace("-", "")) % 2:
        problem = "Input (without hyphens) must be even length"
        raise Fail(500, f"{what} lookup failed: index error: {problem}")


def _check_id(item_id: str, what: str) -> None:
    if len(item_id) != _UUID_LENGTH:
        raise Fail(500, f"{what} lookup failed: index error: UUID must be 36 characters")


def fields(item: Allocation | Evaluation) -> Mapping[str, Any]:
    """Return what a filter sees of an item: every field, empty ones too."""
    return {field.encode_name: getattr(item, field.name) for field in msgspec.structs.fields(type(item))}


def _listed(
    call: Call, items: Iterable[Allocation] | Iterable[Evaluation], what: str, visible: set[str]
) -> list[Any]:
    prefix = call.query.get("prefix", "")
    _check_prefix(prefix, what)
    rows: list[Any] = [item for item in items if item.namespace in visible and item.id.startswith(prefix)]
    if prefix:
        rows.sort(key=lambda item: item.id)
    elif call.query.get("reverse") == "true":
        rows.reverse()
    return rows


def _stubs(call: Call, allocs: Iterable[Allocation]) -> list[dict[str, Any]]:
    states = call.query.get("task_states") != "false"
    rows = []
    for alloc in allocs:
        job = call.cluster.state.job_of(alloc)
        if job is not None:
            rows.append(alloc.stub(job.spec.type, job.alloc_version, task_states=states))
    return rows


async def allocations(call: Call) -> web.Response:
    """GET /v1/allocations."""
    call.allow("GET")
    state = call.cluster.state
    visible = call.visible("read-job") or set()
    await call.blocking(lambda: state.table_index["allocs"])
    rows = _listed(call, state.allocs.values(), "alloc", visible)
    page, following = call.page(rows, fields, lambda alloc: (alloc.create_index, alloc.id))
    headers = {"X-Nomad-Nexttoken": following} if following else {}
    return call.read(_stubs(call, page), state.table_index["allocs"], **headers)


async def evaluations(call: Call) -> web.Response:
    """GET /v1/evaluations."""
    call.allow("GET")
    state = call.cluster.state
    visible = call.visible("read-job") or set()
    await call.blocking(lambda: state.table_index["evals"])
    rows = _listed(call, state.evals.values(), "eval", visible)
    page, following = call.page(rows, fields, lambda item: (item.create_index, item.id))
    headers = {"X-Nomad-Nexttoken": following} if following else {}
    return call.read(page, state.table_index["evals"], **headers)


async def count_evaluations(call: Call) -> web.Response:
    """GET /v1/evaluations/count."""
    call.allow("GET")
    state = call.cluster.state
    visible = call.visible("read-job") or set()
    await call.blocking(lambda: state.table_index["evals"])
    rows = _listed(call, state.evals.values(), "eval", visible)
    found, _ = call.page(rows, fields, lambda item: (item.create_index, item.id))
    index = state.table_index["evals"]
    about = {"Index": index, "LastContact": 0, "KnownLeader": True, "NextToken": ""}
    return call.read({"Count": len(found), **about}, index)


async def allocation(call: Call, alloc_id: str) -> web.Response:
    """GET /v1/allocation/:id, and PUT or POST /v1/allocation/:id/stop."""
    if alloc_id.endswith("/stop"):
        return await _stop(call, alloc_id.removesuffix("/stop"))
    call.allow("GET")
    call.check_region()
    state, token = call.cluster.state, call.token()
    _check_id(alloc_id, "alloc")

    def index() -> int:
        known = state.allocs.get(alloc_id)
        return known.modify_index if known else state.table_index["allocs"]

    found = state.allocs.get(alloc_id)
    if found is not None and not call.acl.allows(token, found.namespace, "read-job"):
        raise Fail(500, f'Unknown allocation "{alloc_id}"')
    await call.blocking(index)
    found = state.allocs.get(alloc_id)
    job = state.job_of(found) if found else None
    if found is None or job is None:
        if not call.acl.allows(token, call.namespace, "read-job"):
            raise Denied
        raise Fail(404, "alloc not found", index=state.table_index["allocs"])
    shown = msgspec.json.decode(msgspec.json.encode(found))
    return call.read(shown | {"Job": job.view(packed=False)}, found.modify_index)


async def _stop(call: Call, alloc_id: str) -> web.Response:
    call.allow("PUT", "POST")
    call.check_region()
    token = call.token()
    _check_id(alloc_id, "alloc")
    alloc = call.cluster.state.allocs.get(alloc_id)
    if alloc is None:
        raise Fail(404, "allocation not found")
    call.acl.require(token, alloc.namespace, "alloc-lifecycle")
    eval_id, index = stop_alloc(call.cluster.state, alloc, call.cluster.now())
    return call.json({"EvalID": eval_id, "Index": index}, index=index)


async def evaluation(call: Call, eval_id: str) -> web.Response:
    """GET /v1/evaluation/:id and /v1/evaluation/:id/allocations."""
    call.allow("GET")
    allocs_wanted = eval_id.endswith("/allocations")
    eval_id = eval_id.removesuffix("/allocations")
    call.check_region()
    state, token = call.cluster.state, call.token()
    if len(eval_id) != _UUID_LENGTH:
        problem = "eval lookup failed: index error: UUID must be 36 characters"
        raise Fail(500, f"failed to lookup eval: {problem}")
    found = state.evals.get(eval_id)
    call.acl.require(token, found.namespace if found else call.namespace, "read-job")
    if allocs_wanted:
        rows = [alloc for alloc in state.allocs.values() if alloc.eval_id == eval_id]
        return call.read(_stubs(call, rows), state.table_index["allocs"])

    def index() -> int:
        known = state.evals.get(eval_id)
        return known.modify_index if known else state.table_index["evals"]

    await call.blocking(index)
    found = state.evals.get(eval_id)
    if found is None:
        raise Fail(404, "eval not found", index=state.table_index["evals"])
    return call.read(found, found.modify_index)


async def logs(call: Call, alloc_id: str) -> web.Response:
    """GET /v1/client/fs/logs/:alloc; `follow` is not simulated: the log so far is the answer."""
    call.allow("GET")
    task, stream = call.query.get("task", ""), call.query.get("type", "")
    if not task:
        raise Fail(400, "must provide task name")
    if stream not in {"stdout", "stderr"}:
        raise Fail(400, "must provide log type (stdout/stderr)")
    offset, origin = _log_place(call)
    alloc = _log_alloc(call, alloc_id)
    try:
        log = call.cluster.engine.clients.logs(alloc.id, task, stream)
    except KeyError:
        raise Fail(400, f'unknown task name "{task}"') from None
    if log is None:
        raise Fail(404, f'Unknown allocation "{alloc_id}"')
    start = min(offset, len(log)) if origin == "start" else max(len(log) - offset, 0)
    if call.query.get("plain") == "true":
        return web.Response(body=log[start:], headers={"Content-Type": "text/plain"})
    if start >= len(log):
        return web.Response(body=b"", content_type="application/json")
    frame = {
        "Data": base64.b64encode(log[start:]).decode(),
        "File": f"alloc/logs/{task}.{stream}.0",
        "Offset": len(log),
    }
    return web.Response(body=msgspec.json.encode(frame), content_type="application/json")


def _log_place(call: Call) -> tuple[int, str]:
    given, origin = call.query.get("offset") or "0", call.query.get("origin") or "start"
    try:
        offset = int(given)
    except ValueError:
        problem = f'strconv.ParseInt: parsing "{given}": invalid syntax'
        raise Fail(400, f"error parsing offset: {problem}") from None
    if origin not in {"start", "end"}:
        raise Fail(400, "origin must be start or end")
    return offset, origin


def _log_alloc(call: Call, alloc_id: str) -> Allocation:
    """Find the allocation of a log request; this endpoint reports bad tokens in its own words."""
    try:
        token = call.acl.resolve(call.secret(), call.cluster.now())
    except UnknownSignature:
        raise Fail(500, f"rpc error: {SIGNATURE}") from None
    except Denied:
        raise Fail(500, "rpc error: Permission denied") from None
    _check_id(alloc_id, "alloc")
    found = call.cluster.state.allocs.get(alloc_id)
    namespace = found.namespace if found else call.namespace
    call.acl.require(token, namespace, "read-logs", "read-fs")
    if found is None:
        raise Fail(404, f'Unknown allocation "{alloc_id}"')
    return found
