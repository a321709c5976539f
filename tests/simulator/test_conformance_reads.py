"""Reads, stops, logs and agent endpoints are answered as recorded from a real Nomad."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import pytest

from tests.simulator.cluster import client_status, eventually, group, job, latest, mock, status, until
from tests.simulator.transcripts import Caller, assert_like, differences, exchange, exchanges
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

RECORDED_CHILD = "lst/dispatch-1795484653-34a6fd82"
RECORDED_ALLOC = "6d05d194-6130-bcc4-3893-8f056c35ad9b"
LOG = "".join(f"line {number} u0\n" for number in range(30))
LISTS = [
    entry
    for entry in exchanges("06-list-jobs")
    if "_trimmed" not in str(entry["response"]) and "submission" not in entry["request"]["path"]
]
LOGS = [
    entry for entry in exchanges("07-logs") if "purged" not in entry["note"] and "gc" not in entry["note"]
]


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    """The recorded cluster: a parent with four finished children, one of them failed."""
    task = mock(stdout_string=LOG, stderr_string="err\n", run_for="1ms", exit_code="${NOMAD_META_code}")
    jobs = [job("lst", group(task)), job("stp", group(mock(run_for="60s")))]
    async with Simulator(jobs, update_seconds=0, scheduling_seconds=0.02) as simulator:
        for number in range(4):
            meta = {"who": f"u{number}", "code": "1" if number == 2 else "0"}
            child = simulator.dispatch("lst", token=f"173250000000{number}-0", meta=meta).job_id
            await status(simulator, child, "dead")
        yield simulator


@pytest.fixture
async def caller(nomad: Simulator) -> AsyncIterator[Caller]:
    caller = Caller(nomad.address)
    yield caller
    await caller.close()


def first_child(nomad: Simulator) -> str:
    return nomad.state.tokens["default", "lst", "1732500000000-0"].id


def here(nomad: Simulator, path: str) -> str:
    """A recorded path with this cluster's IDs."""
    child = first_child(nomad)
    second = nomad.state.tokens["default", "lst", "1732500000001-0"].id
    return (
        path.replace(RECORDED_CHILD, child)
        .replace(RECORDED_CHILD.replace("/", "%2F"), child.replace("/", "%2F"))
        .replace("lst%2Fdispatch-1795484653-8fb7ef9c", second.replace("/", "%2F"))
        .replace(RECORDED_ALLOC, latest(nomad, child).id)
    )


@pytest.mark.parametrize("entry", LISTS, ids=[entry["note"][:60] for entry in LISTS])
async def test_a_list_is_answered_as_recorded(
    entry: dict[str, Any], nomad: Simulator, caller: Caller
) -> None:
    answer = await caller.send("GET", here(nomad, entry["request"]["path"]))

    recorded = entry["response"]
    assert answer.status == recorded["status"], answer.text
    if "json" not in recorded:
        assert answer.text == recorded["body_raw"]
        return
    found = differences(recorded["json"], answer.json)
    if entry["note"].startswith("all failed allocs"):
        # Trimmed in the recording without a mark.
        found = [text for text in found if not text.endswith("is extra")]
    assert found == []
    if isinstance(recorded["json"], list):
        assert bool(answer.json) == bool(recorded["json"])
    paged = "X-Nomad-Nexttoken" in recorded["headers"]
    if "lst" in unquote(entry["request"]["path"]) and "next_token" not in entry["request"]["path"]:
        assert ("X-Nomad-Nexttoken" in answer.headers) == paged


async def test_pages_together_are_the_whole_list(nomad: Simulator, caller: Caller) -> None:
    path = "/v1/jobs?prefix=lst%2Fdispatch-&per_page=3"
    first = await caller.send("GET", path)
    token = first.headers["X-Nomad-Nexttoken"].replace("/", "%2F")

    second = await caller.send("GET", f"{path}&next_token={token}")

    ids = [row["ID"] for page in (first, second) for row in page.json]
    assert ids == sorted(job.id for job in nomad.state.jobs.values() if job.parent_id == "lst")
    assert "X-Nomad-Nexttoken" not in second.headers


async def test_a_page_begins_at_its_token_even_if_that_row_is_gone(nomad: Simulator, caller: Caller) -> None:
    path = "/v1/jobs?prefix=lst%2Fdispatch-&per_page=2"
    token = (await caller.send("GET", path)).headers["X-Nomad-Nexttoken"]
    nomad.stop_job(token.removeprefix("default."), purge=True)

    rows = (await caller.send("GET", f"{path}&next_token={token.replace('/', '%2F')}")).json

    assert len(rows) == 1


@pytest.mark.parametrize("entry", LOGS, ids=[entry["note"] for entry in LOGS])
async def test_logs_are_answered_as_recorded(entry: dict[str, Any], nomad: Simulator, caller: Caller) -> None:
    answer = await caller.send("GET", here(nomad, entry["request"]["path"]))

    assert_like(entry, answer)
    if "json" in entry["response"]:
        assert answer.json == entry["response"]["json"]
    else:
        assert answer.text == entry["response"]["body_raw"]


async def test_logs_of_a_purged_job_are_gone(nomad: Simulator, caller: Caller) -> None:
    alloc_id = latest(nomad, first_child(nomad)).id
    nomad.stop_job(first_child(nomad), purge=True)

    log = await caller.send("GET", f"/v1/client/fs/logs/{alloc_id}?task=t&type=stdout&plain=true")
    alloc = await caller.send("GET", f"/v1/allocation/{alloc_id}")

    assert (log.status, log.text) == (404, f'Unknown allocation "{alloc_id}"')
    assert (alloc.status, alloc.text) == (404, "alloc not found")


AGENT = list(exchanges("08-agent-endpoints"))


@pytest.mark.parametrize("entry", AGENT, ids=[entry["note"] for entry in AGENT])
async def test_the_agent_answers_as_recorded(entry: dict[str, Any], caller: Caller) -> None:
    answer = await caller.send("GET", entry["request"]["path"])

    if "_trimmed" in str(entry["response"].get("json")):
        assert answer.status == 200
        assert entry["response"]["json"].keys() - {"_trimmed"} <= answer.json.keys()
    else:
        assert_like(entry, answer)


async def test_a_blocking_read_waits_for_a_change_and_no_longer_than_asked(
    nomad: Simulator, caller: Caller
) -> None:
    child = first_child(nomad)
    index = (await caller.send("GET", f"/v1/job/{child}")).headers["X-Nomad-Index"]
    began = time.monotonic()
    same = await caller.send("GET", f"/v1/job/{child}?index={index}&wait=200ms")
    waited = time.monotonic() - began
    reading = asyncio.create_task(caller.send("GET", f"/v1/job/{child}?index={index}&wait=10s"))
    await eventually(lambda: bool(nomad.cluster.changes._waiting))

    nomad.stop_job(child)

    changed = await reading
    assert (same.status, same.headers["X-Nomad-Index"]) == (200, index)
    assert waited >= 0.2
    assert changed.json["Stop"]
    assert int(changed.headers["X-Nomad-Index"]) > int(index)


@pytest.mark.parametrize("note", ["bad index", "bad wait"])
async def test_a_bad_blocking_query_is_refused_as_recorded(
    note: str, nomad: Simulator, caller: Caller
) -> None:
    entry = exchange("04-blocking-queries", note)
    query = entry["request"]["path"].partition("?")[2]

    assert_like(entry, await caller.send("GET", f"/v1/job/{first_child(nomad)}/allocations?{query}"))


async def test_stop_purge_and_collection_go_as_recorded() -> None:
    # Slow to schedule, so that the read right after a stop sees the job as it was.
    jobs = [job("lst"), job("stp", group(mock(run_for="60s")))]
    async with Simulator(jobs, update_seconds=0, scheduling_seconds=0.2) as nomad:
        caller = Caller(nomad.address)
        try:
            await stop_purge_and_collect(nomad, caller)
        finally:
            await caller.close()


async def stop_purge_and_collect(nomad: Simulator, caller: Caller) -> None:
    first, second = (nomad.dispatch("stp").job_id for _ in range(2))
    await client_status(nomad, first, "running")
    await client_status(nomad, second, "running")
    child = first
    for entry in exchanges("10-stop-purge-gc"):
        request, note = entry["request"], entry["note"]
        if note.startswith("stop the PARENT"):
            child = second
        if note.startswith("2 s later"):
            await client_status(nomad, child, "complete")
        if note.startswith("stopped parent after GC"):
            await until(nomad, lambda: ("default", "stp") not in nomad.state.jobs)
        path = request["path"]
        for recorded in ("stp%2Fdispatch-1795484664-1065dfca", "stp%2Fdispatch-1795484667-ac884733"):
            path = path.replace(recorded, child.replace("/", "%2F"))

        answer = await caller.send(request["method"], path, request["body"])

        assert answer.status == entry["response"]["status"], note
        shown = entry["response"].get("json")
        if isinstance(shown, dict) and "Status" in shown:
            assert {key: answer.json[key] for key in ("Status", "Stop")} == {
                key: shown[key] for key in ("Status", "Stop")
            }, note
        elif isinstance(shown, dict):
            assert answer.json.keys() == shown.keys(), note
            assert bool(answer.json["EvalID"]) == bool(shown["EvalID"]), note
        elif isinstance(shown, list):
            assert len(answer.json) == len(shown), note
        else:
            assert answer.text == entry["response"]["body_raw"], note


async def test_a_node_can_be_read_drained_and_made_eligible_again(nomad: Simulator, caller: Caller) -> None:
    node = (await caller.get("/v1/nodes"))[0]
    path = f"/v1/node/{node['ID']}"
    recorded = next(entry for entry in exchanges("04-outcome-node-drain-force") if "drain" in entry["note"])

    drained = await caller.send("PUT", f"{path}/drain", recorded["request"]["body"])
    await until(nomad, lambda: nomad.state.nodes[node["ID"]].drain is None)
    ineligible = (await caller.get(path))["SchedulingEligibility"]
    await caller.send("PUT", f"{path}/eligibility", {"Eligibility": "eligible"})

    assert_like(recorded, drained)
    assert ineligible == "ineligible"
    assert (await caller.get(path))["SchedulingEligibility"] == "eligible"
    assert (await caller.send("GET", "/v1/node/abc")).status == 500
