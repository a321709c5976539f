"""What a token may do: the recorded matrix of policies and operations, and tokens that end."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.simulator.cluster import client_status, eventually, group, job, latest, mock, status
from tests.simulator.transcripts import Caller, assert_like, differences, exchange, load
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

ENTRIES = load("03-acl")["exchanges"]
POLICIES: dict[str, str] = next(entry["policies"] for entry in ENTRIES if "policies" in entry)
MATRIX: dict[str, dict[str, Any]] = next(entry["matrix"] for entry in ENTRIES if "matrix" in entry)
ROOT = "5ec2e700-0000-4000-8000-00000000ffff"
UNKNOWN = "11111111-2222-3333-4444-555555555555"
SECRETS = {name: f"5ec2e700-0000-4000-8000-{number:012d}" for number, name in enumerate(POLICIES)}
SPECIAL = {
    "management": ROOT,
    "anonymous (no token)": "",
    "bad token (not a UUID)": "garbage",
    "unknown token (UUID)": UNKNOWN,
}
OPERATIONS: dict[str, tuple[str, str, Any]] = {
    "dispatch": ("POST", "/v1/job/render/dispatch", {}),
    "dispatch ns team": ("POST", "/v1/job/render/dispatch?namespace=team", {}),
    "list jobs": ("GET", "/v1/jobs", None),
    "list jobs ns=*": ("GET", "/v1/jobs?namespace=*", None),
    "GET parent job": ("GET", "/v1/job/render", None),
    "GET job": ("GET", "/v1/job/{child}", None),
    "summary": ("GET", "/v1/job/{child}/summary", None),
    "job evaluations": ("GET", "/v1/job/{child}/evaluations", None),
    "job allocations": ("GET", "/v1/job/{child}/allocations", None),
    "GET evaluation": ("GET", "/v1/evaluation/{eval}", None),
    "list evaluations": ("GET", "/v1/evaluations?per_page=1", None),
    "list allocations": ("GET", "/v1/allocations?per_page=1", None),
    "list allocations ns=*": ("GET", "/v1/allocations?per_page=1&namespace=*", None),
    "GET allocation": ("GET", "/v1/allocation/{alloc}", None),
    "logs": ("GET", "/v1/client/fs/logs/{alloc}?task=t&type=stdout&plain=true", None),
    "stop job": ("DELETE", "/v1/job/{child}", None),
    "namespaces": ("GET", "/v1/namespaces", None),
    "agent/self": ("GET", "/v1/agent/self", None),
    "agent/health": ("GET", "/v1/agent/health", None),
    "status/leader": ("GET", "/v1/status/leader", None),
    "regions": ("GET", "/v1/regions", None),
    "metrics": ("GET", "/v1/metrics", None),
    "nodes": ("GET", "/v1/nodes", None),
    "token self": ("GET", "/v1/acl/token/self", None),
    "system gc": ("PUT", "/v1/system/gc", None),
}
STREAMS = {
    "stream Job+Eval+Alloc": "?topic=Job&topic=Evaluation&topic=Allocation",
    "stream Allocation": "?topic=Allocation",
    "stream Job of team": "?topic=Job&namespace=team",
    "stream ns=*": "?topic=Job&namespace=*",
    "stream all topics (no topic)": "",
    "stream Node": "?topic=Node",
}


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    acl = {
        "bootstrap_token": ROOT,
        "policies": POLICIES,
        "tokens": [{"secret": SECRETS[name], "policies": [name], "name": "t"} for name in POLICIES],
    }
    jobs = [job("render", group(mock(run_for="60s"))), job("render", Namespace="team")]
    async with Simulator(jobs, acl=acl, update_seconds=0) as simulator:
        yield simulator


def header(row: str) -> dict[str, str]:
    if row == "bearer":
        return {"Authorization": f"Bearer {SECRETS['worker']}"}
    secret = SPECIAL[row] if row in SPECIAL else SECRETS[row]
    return {"X-Nomad-Token": secret} if secret else {}


@pytest.mark.parametrize("row", MATRIX)
async def test_a_token_may_do_what_the_recorded_one_might(row: str, nomad: Simulator) -> None:
    child = nomad.dispatch("render").job_id
    alloc = await client_status(nomad, child, "running")
    names = {"child": child, "alloc": alloc.id, "eval": alloc.eval_id}
    caller = Caller(nomad.address)
    try:
        for operation, recorded in MATRIX[row].items():
            if operation in STREAMS:
                continue
            method, path, body = OPERATIONS[operation]
            answer = await caller.send(method, path.format(**names), body, **header(row))
            text = "OK" if answer.status == 200 else answer.text
            expected = recorded.replace("b83006b4-7b05-bf9f-d7fa-2ff8510942ca", alloc.id).partition(" (")[0]
            assert f"{answer.status} {text}" == expected, operation
    finally:
        await caller.close()


async def first_line(caller: Caller, address: str, query: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status and first line of a stream; no line within a moment is a refusal."""
    async with caller.session.get(f"{address}/v1/event/stream{query}", headers=headers) as response:
        try:
            async with asyncio.timeout(0.15):
                return response.status, (await response.content.readline()).decode().strip()
        except TimeoutError:
            return response.status, ""


@pytest.mark.parametrize("operation", STREAMS)
async def test_a_refused_stream_is_200_and_silent(operation: str, nomad: Simulator) -> None:
    caller = Caller(nomad.address)
    try:
        rows = {row: recorded[operation] for row, recorded in MATRIX.items() if operation in recorded}
        answers = await asyncio.gather(
            *(first_line(caller, nomad.address, STREAMS[operation], header(row)) for row in rows)
        )
    finally:
        await caller.close()

    lines = dict(zip(rows, answers, strict=True))
    assert lines == {row: (200, recorded["first_frame"] or "") for row, recorded in rows.items()}


async def test_a_refusal_comes_before_the_lookup(nomad: Simulator) -> None:
    caller = Caller(nomad.address, SECRETS["read"])
    entry = exchange("03-acl", "unknown job without permission")

    answer = await caller.send("POST", "/v1/job/nosuch/dispatch", {})

    await caller.close()
    assert_like(entry, answer)


async def test_tokens_and_policies_can_be_made_and_taken_away_over_http() -> None:
    async with Simulator([job("render")], acl={}) as nomad:
        caller = Caller(nomad.address)
        bootstrap = await caller.send("POST", "/v1/acl/bootstrap", {})
        again = await caller.send("POST", "/v1/acl/bootstrap", {})
        root = {"X-Nomad-Token": bootstrap.json["SecretID"]}
        rules = {"Name": "worker", "Rules": POLICIES["worker"]}
        await caller.send("PUT", "/v1/acl/policy/worker", rules, **root)
        made = await caller.send("PUT", "/v1/acl/token", {"Policies": ["worker"], "Type": "client"}, **root)
        mine = {"X-Nomad-Token": made.json["SecretID"]}
        before = await caller.send("POST", "/v1/job/render/dispatch", {}, **mine)
        await caller.send("DELETE", f"/v1/acl/token/{made.json['AccessorID']}", **root)
        after = await caller.send("POST", "/v1/job/render/dispatch", {}, **mine)
        await caller.close()

    recorded = exchange("03-acl", "bootstrap (first time)")["response"]["json"]
    assert differences(recorded, bootstrap.json) == []
    assert (again.status, again.text.partition(" (")[0]) == (400, "ACL bootstrap already done")
    assert (before.status, after.status) == (200, 403)


async def test_an_expired_token_is_refused(nomad: Simulator) -> None:
    token = nomad.acl.create(["worker"], time.time_ns(), ttl=10**9 * 3600)
    caller = Caller(nomad.address, token.secret_id)
    valid = await caller.send("POST", "/v1/job/render/dispatch", {})

    token.expires = time.time_ns() - 1

    expired = await caller.send("POST", "/v1/job/render/dispatch", {})
    await caller.close()
    assert valid.status == 200
    assert_like(exchange("03-acl", "expired token: dispatch"), expired)


async def lines_of(nomad: Simulator, secret: str, act: Any) -> tuple[list[str], list[str]]:
    """The lines of a stream before and after an act that ends in another child's life."""
    caller = Caller(nomad.address, secret)
    before: list[str] = []
    after: list[str] = []
    now = before
    headers = {"X-Nomad-Token": secret}
    async with caller.session.get(f"{nomad.address}/v1/event/stream?topic=Job", headers=headers) as response:

        async def read() -> None:
            async for line in response.content:
                now.append(line.decode().strip())

        reading = asyncio.create_task(read())
        await eventually(lambda: any("JobRegistered" in line for line in before))
        now = after
        act()
        child = nomad.dispatch("render", namespace="default").job_id
        await client_status(nomad, child, "running")
        await asyncio.sleep(0.25)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await caller.close()
    return before, after


@pytest.mark.parametrize("how", ["deleted", "policy emptied"])
async def test_a_stream_dies_silently_with_its_token(how: str) -> None:
    acl = {
        "policies": {"worker": POLICIES["worker"]},
        "tokens": [{"secret": UNKNOWN, "policies": ["worker"]}],
    }
    options: dict[str, Any] = {"acl": acl, "heartbeat_seconds": 0.05, "update_seconds": 0}
    async with Simulator([job("render", group(mock(run_for="60s")))], **options) as nomad:

        def act() -> None:
            if how == "deleted":
                nomad.acl.revoke(UNKNOWN)
            else:
                nomad.acl.policies["worker"] = {}

        before, after = await lines_of(nomad, UNKNOWN, act)

    assert "{}" in before
    assert after == []


async def test_after_expiry_a_stream_keeps_its_heartbeats_until_the_next_event() -> None:
    acl = {
        "policies": {"worker": POLICIES["worker"]},
        "tokens": [{"secret": UNKNOWN, "policies": ["worker"], "ttl_seconds": 3600}],
    }
    async with Simulator([job("render")], acl=acl, heartbeat_seconds=0.02, update_seconds=0) as nomad:
        headers = {"X-Nomad-Token": UNKNOWN}
        caller = Caller(nomad.address)
        url = f"{nomad.address}/v1/event/stream?topic=Job&index=99999999"
        async with caller.session.get(url, headers=headers) as response:
            await response.content.readline()
            nomad.acl.tokens[UNKNOWN].expires = 1

            async with asyncio.timeout(5):
                beats = [await response.content.readline() for _ in range(5)]
            child = nomad.dispatch("render").job_id
            await status(nomad, child, "dead")
            rest = b""
            try:
                async with asyncio.timeout(0.3):
                    while True:
                        rest += await response.content.readline()
            except TimeoutError:
                pass
        await caller.close()

    assert beats[-3:] == [b"{}\n"] * 3
    assert b"AllocationUpdated" not in rest
    assert latest(nomad, child).client_status == "complete"
