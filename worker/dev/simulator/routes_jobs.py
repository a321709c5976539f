"""The endpoints of jobs: list, register, read, stop, dispatch.

Checks and texts of dispatches are in `dispatching`, writes in `commands`; this translates to and from HTTP.
"""

import asyncio

from aiohttp import web

from worker.dev.simulator.call import Call, Fail
from worker.dev.simulator.cluster import new_uuid
from worker.dev.simulator.commands import deregister, register
from worker.dev.simulator.dispatching import Dispatched, DispatchRequest, Refused, child_id, dispatch
from worker.dev.simulator.gojson import Malformed, decode
from worker.dev.simulator.jobfile import InvalidJob, canonical_job
from worker.dev.simulator.jobs import Job


async def jobs(call: Call) -> web.Response:
    """GET /v1/jobs, and registration with PUT or POST."""
    if call.method in {"PUT", "POST"}:
        return await _register(call)
    call.allow("GET")
    state = call.cluster.state
    visible = call.visible("list-jobs") or set()
    await call.blocking(lambda: state.table_index["jobs"])
    rows = (
        job
        for job in state.find_jobs(call.namespace, call.query.get("prefix", ""))
        if job.namespace in visible
    )
    page, following = call.page(rows, lambda job: job.view(packed=False), lambda job: (job.namespace, job.id))
    meta = call.query.get("meta") == "true"
    headers = {"X-Nomad-Nexttoken": following} if following else {}
    return call.read([job.stub(meta=meta) for job in page], state.table_index["jobs"], **headers)


async def _register(call: Call) -> web.Response:
    cluster = call.cluster
    try:
        body = decode(await call.request.read())
    except Malformed as error:
        raise Fail(400, str(error)) from None
    given = body.get("Job") if isinstance(body, dict) else None
    if not isinstance(given, dict):
        raise Fail(400, "Job must be specified")
    if not given.get("ID"):
        raise Fail(400, "Job ID hasn't been provided")
    if not given.get("Namespace") or "namespace" in call.query:
        given = given | {"Namespace": call.namespace}
    call.require(given["Namespace"], "submit-job")
    try:
        job, eval_id, index = register(cluster.state, canonical_job(given), cluster.now())
    except InvalidJob as error:
        raise Fail(error.status, str(error)) from None
    except Refused as error:
        raise Fail(500, str(error)) from None
    answer = {
        "EvalCreateIndex": index if eval_id else 0,
        "EvalID": eval_id,
        "Index": index,
        "JobModifyIndex": job.job_modify_index,
        "KnownLeader": False,
        "LastContact": 0,
        "NextToken": "",
        "Warnings": "",
    }
    return call.json(answer, index=index)


def _known(call: Call, job_id: str) -> Job:
    job = call.cluster.state.job(call.namespace, job_id)
    if job is None:
        raise Fail(404, "job not found", index=call.cluster.state.table_index["jobs"])
    return job


async def job(call: Call, job_id: str) -> web.Response:
    """GET and DELETE /v1/job/:id; PUT and POST register."""
    if call.method in {"PUT", "POST"}:
        return await _register(call)
    if call.method == "DELETE":
        call.require(call.namespace, "submit-job")
        purge = call.query.get("purge", "") in {"true", "1"}
        cluster = call.cluster
        stopped = deregister(cluster.state, call.namespace, job_id, cluster.now(), purge=purge)
        return call.json(stopped.answer(), index=stopped.index)
    call.allow("GET")
    call.require(call.namespace, "read-job")
    state = call.cluster.state

    def index() -> int:
        found = state.job(call.namespace, job_id)
        return found.modify_index if found else state.table_index["jobs"]

    await call.blocking(index)
    return call.read(_known(call, job_id).view(packed=False), index())


async def summary(call: Call, job_id: str) -> web.Response:
    """GET /v1/job/:id/summary."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    state = call.cluster.state

    def index() -> int:
        found = state.job(call.namespace, job_id)
        return found.summary_index if found else state.table_index["jobs"]

    await call.blocking(index)
    return call.read(_known(call, job_id).summary(), index())


async def allocations(call: Call, job_id: str) -> web.Response:
    """GET /v1/job/:id/allocations: empty for an unknown job."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    state = call.cluster.state
    await call.blocking(lambda: state.table_index["allocs"])
    found = state.job(call.namespace, job_id)
    rows = [
        alloc.stub(found.spec.type, found.alloc_version)
        for alloc in state.allocs_of(call.namespace, job_id)
        if found is not None
    ]
    return call.read(rows, state.table_index["allocs"])


async def evaluations(call: Call, job_id: str) -> web.Response:
    """GET /v1/job/:id/evaluations: empty for an unknown job, kept for a purged one."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    state = call.cluster.state
    await call.blocking(lambda: state.table_index["evals"])
    return call.read(state.evals_of(call.namespace, job_id), state.table_index["evals"])


async def deployments(call: Call, _job_id: str) -> web.Response:
    """GET /v1/job/:id/deployments: batch jobs have none."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    return call.read([], 0)


async def deployment(call: Call, _job_id: str) -> web.Response:
    """GET /v1/job/:id/deployment: the latest one; batch jobs have none."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    return call.read(None, 0)


async def versions(call: Call, job_id: str) -> web.Response:
    """GET /v1/job/:id/versions: the current one only."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    job = _known(call, job_id)
    shown = {"Diffs": None, "Index": job.modify_index, "KnownLeader": True, "LastContact": 0}
    return call.read(shown | {"NextToken": "", "Versions": [job.view(packed=False)]}, job.modify_index)


async def submission(call: Call, _job_id: str) -> web.Response:
    """GET /v1/job/:id/submission: the simulator keeps no source text."""
    call.allow("GET")
    call.require(call.namespace, "read-job")
    raise Fail(404, "job source not found", index=0)


async def evaluate(call: Call, _job_id: str) -> web.Response:
    """PUT /v1/job/:id/evaluate is not simulated beyond its check of the body."""
    call.allow("PUT", "POST")
    raise Fail(400, "Job ID must be specified")


async def dispatch_job(call: Call, job_id: str) -> web.Response:
    """PUT and POST /v1/job/:id/dispatch."""
    call.allow("PUT", "POST")
    cluster = call.cluster
    arrived = cluster.state.index
    try:
        request = DispatchRequest.parse(
            job_id,
            await call.request.read(),
            namespace=call.query.get("namespace", ""),
            token=call.query.get("idempotency_token", ""),
        )
    except Malformed as error:
        raise Fail(400, str(error)) from None
    call.require(request.namespace, "dispatch-job")
    try:
        if cluster.faults.phantoms and request.token:
            await asyncio.sleep(cluster.faults.phantom_window_seconds)
            phantom = _phantom(call, request, arrived)
            if phantom is not None:
                return call.json(phantom.answer(), index=phantom.index)
        answer = dispatch(cluster.state, request, cluster.now())
    except Refused as error:
        raise Fail(500, str(error)) from None
    if answer.eval_id:
        cluster.record.accepted(request, answer.job_id, cluster.now())
    return call.json(answer.answer(), index=answer.index)


def _phantom(call: Call, request: DispatchRequest, arrived: int) -> Dispatched | None:
    """Return the answer of a dispatch that lost a race: it looks like a first one, but nothing exists."""
    cluster = call.cluster
    winner = cluster.state.tokens.get((request.namespace, request.job_id, request.token))
    if winner is None or winner.create_index <= arrived:
        return None
    cluster.state.index += 1
    index = cluster.state.index
    return Dispatched(child_id(request, cluster.now()), new_uuid(), index, index)
