"""Planned faults do what they say, in Python and over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.simulator.cluster import client_status, group, job, latest, mock, on_node, status, until
from tests.simulator.test_conformance_stream import TOPICS, Listener, stream
from tests.simulator.transcripts import Caller, assert_like, exchange, load
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    jobs = [job("render"), job("slow", group(mock(run_for="60s")))]
    async with Simulator(jobs, update_seconds=0) as simulator:
        yield simulator


@pytest.fixture
async def caller(nomad: Simulator) -> AsyncIterator[Caller]:
    caller = Caller(nomad.address)
    yield caller
    await caller.close()


async def test_an_answer_can_be_lost_after_the_dispatch_was_accepted(
    nomad: Simulator, caller: Caller
) -> None:
    nomad.faults.lose_answer("dispatch")

    with pytest.raises(aiohttp.ClientError):
        await caller.dispatch("render", "1-0")

    repeat = await caller.dispatch("render", "1-0")
    assert repeat["EvalID"] == ""
    assert [entry["token"] for entry in nomad.record.dispatches] == ["1-0"]


async def test_a_connection_can_be_cut_before_the_request_is_handled(
    nomad: Simulator, caller: Caller
) -> None:
    nomad.faults.drop("dispatch")

    with pytest.raises(aiohttp.ClientError):
        await caller.dispatch("render", "1-0")

    assert nomad.record.dispatches == []


async def test_an_answer_can_be_replaced_a_number_of_times(caller: Caller) -> None:
    plan = {"route": "job*", "kind": "respond", "status": 429, "text": "slow down", "times": 2, "after": 1}
    await caller.send("POST", "/_simulator/faults", plan)

    answers = [(await caller.send("GET", "/v1/job/render")).status for _ in range(4)]

    assert answers == [200, 429, 429, 200]


async def test_a_request_can_be_delayed_or_never_answered(nomad: Simulator, caller: Caller) -> None:
    nomad.faults.delay("leader", 0.2, times=1)
    began = time.monotonic()
    delayed = await caller.send("GET", "/v1/status/leader")
    took = time.monotonic() - began

    nomad.faults.add("leader", "hang", times=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await caller.send("GET", "/v1/status/leader")

    assert delayed.status == 200
    assert took >= 0.2


async def test_an_unknown_fault_is_refused(caller: Caller) -> None:
    answer = await caller.send("POST", "/_simulator/faults", {"route": "job", "kind": "drop", "often": 1})

    assert (answer.status, answer.text) == (400, "unknown fields: often")


async def test_events_can_overtake_the_answer(nomad: Simulator, caller: Caller) -> None:
    nomad.faults.events_before_answers(0.3, times=1)
    async with stream(caller, nomad, f"{TOPICS}&index=999999") as listener:
        await listener.line()
        await listener.line()
        answering = asyncio.create_task(caller.dispatch("render"))

        frame = await listener.frame()

        assert not answering.done()
        assert frame["Events"][0]["Key"] == (await answering)["DispatchedJobID"]


async def test_without_a_leader_it_answers_as_recorded(nomad: Simulator, caller: Caller) -> None:
    nomad.faults.leaderless_seconds = 0.05
    for entry in load("08-no-leader")["exchanges"]:
        if "request" not in entry or entry["note"].startswith("list jobs, stale"):
            continue
        answer = await caller.send(
            entry["request"]["method"], entry["request"]["path"], entry["request"]["body"]
        )
        assert_like(entry, answer)
    stale = await caller.send("GET", "/v1/jobs?stale")
    assert stale.status == 200
    recorded = exchange("08-no-leader", "list jobs, stale")["response"]["headers"]
    for header in ("X-Nomad-Knownleader", "X-Nomad-Lastcontact"):
        assert stale.headers[header] == recorded[header]


async def test_heartbeats_go_on_without_a_leader(caller: Caller) -> None:
    async with Simulator(heartbeat_seconds=0.02) as nomad, stream(caller, nomad, TOPICS) as listener:
        nomad.faults.leaderless_seconds = 5.0
        assert [await listener.line() for _ in range(3)] == ["{}"] * 3


async def test_streams_can_be_closed_and_muted(caller: Caller) -> None:
    async with (
        Simulator([job("render")], heartbeat_seconds=0.02) as nomad,
        stream(caller, nomad, "topic=Evaluation") as listener,
    ):
        assert await listener.line() == "{}"
        nomad.faults.mute_streams()
        while not listener._lines.empty():
            await listener.line()
        child = nomad.dispatch("render").job_id
        await status(nomad, child, "dead")
        assert listener._lines.qsize() <= 1  # a heartbeat may have been on its way
        nomad.faults.close_streams()
        lines = [await listener.line() for _ in range(listener._lines.qsize() + 1)]
        assert lines[-1] is None


async def test_streams_can_be_cut_at_random(nomad: Simulator, caller: Caller) -> None:
    await caller.send("POST", "/_simulator/modes", {"stream_life_seconds": 0.05})

    async with stream(caller, nomad, "topic=Bogus") as listener:
        lines = [await listener.line(), await listener.line()]

    assert lines == ["{}", None]


async def test_frames_can_be_skipped(nomad: Simulator, caller: Caller) -> None:
    await caller.send("POST", "/_simulator/streams", {"action": "skip_frames", "frames": 2})
    async with stream(caller, nomad, f"{TOPICS}&index=999999") as listener:
        await listener.line()
        await listener.line()
        child = nomad.dispatch("render").job_id

        frame = await listener.frame()

        assert frame["Events"][0]["Type"] == "PlanResult"
        assert frame["Events"][-1]["Key"] == child


async def test_a_stopped_server_ends_streams_and_refuses_connections_until_it_is_back(
    nomad: Simulator, caller: Caller
) -> None:
    child = nomad.dispatch("slow", token="1-0").job_id
    await client_status(nomad, child, "running")
    index = nomad.state.index
    async with Listener(caller, f"{nomad.address}/v1/event/stream?{TOPICS}&index=99999") as listener:
        await listener.line()
        await listener.line()

        await nomad.stop_server()

        assert await listener.line() is None
    with pytest.raises(aiohttp.ClientConnectorError):
        await caller.send("GET", "/v1/status/leader")
    await nomad.start_server(index_back=3)
    assert (await caller.get(f"/v1/job/{child}"))["Status"] == "running"
    assert (await caller.dispatch("slow", "1-0"))["DispatchedJobID"] == child
    assert nomad.state.index == index - 3


async def test_too_many_connections_are_refused_as_recorded() -> None:
    async with Simulator(max_connections_per_client=2) as nomad:
        callers = [Caller(nomad.address) for _ in range(3)]
        async with stream(callers[0], nomad, TOPICS) as listener:
            assert await listener.line() == "{}"
            answers = [(await caller.send("GET", "/v1/regions")).status for caller in callers[:2]]
            refused = await callers[2].send("GET", "/v1/regions")
        for caller in callers:
            await caller.close()

    # The stream does not count; the two idle connections do.
    assert answers == [200, 200]
    assert refused.status == 429
    assert refused.text == (
        "Your IP is issuing too many concurrent connections, please rate limit your calls\n"
    )


async def test_nodes_jobs_and_allocations_are_moved_over_http(nomad: Simulator, caller: Caller) -> None:
    nomad.register(job("pinned", group(mock(run_for="60s")), Constraints=on_node(2)))
    child = nomad.dispatch("pinned").job_id
    first = await client_status(nomad, child, "running")

    await caller.send("POST", f"/_simulator/allocations/{first.id}/stop")
    await until(nomad, lambda: latest(nomad, child) is not first)
    await caller.send("POST", "/_simulator/nodes/node-2/lose")
    await status(nomad, child, "pending")
    await caller.send("POST", "/_simulator/nodes/node-2/return")
    await status(nomad, child, "running")
    await caller.send("POST", f"/_simulator/jobs/{child}/stop")
    await status(nomad, child, "dead")
    await caller.send("POST", f"/_simulator/jobs/{child}/purge")

    gone = await caller.send("GET", f"/v1/job/{child}")
    log = await caller.get("/_simulator/log")
    assert gone.status == 404
    assert {run["job_id"] for run in log["runs"]} == {child}
    assert log["requests"]["job"] == 1


async def test_the_most_connections_of_each_client_are_on_record(nomad: Simulator) -> None:
    async def open_streams(client: str, count: int) -> None:
        async with aiohttp.ClientSession(nomad.address, headers={"User-Agent": client}) as session:
            for _ in range(count):
                # Kept open until the session ends.
                await session.get("/v1/event/stream")

    await open_streams("one", 3)
    await open_streams("one", 2)
    await open_streams("other", 1)

    assert nomad.record.connections == {"one": 3, "other": 1}


async def test_blocked_work_is_placed_by_priority_then_age(nomad: Simulator) -> None:
    big = mock(run_for="50ms", Resources={"CPU": 500, "MemoryMB": 10})
    for number in (1, 2):
        nomad.resize_node(f"node-{number}", cpu=0 if number == 2 else 400)
    nomad.register(job("big", group(big)))
    children = [nomad.dispatch("big", priority=priority).job_id for priority in (10, 90, 50, 90)]
    await until(
        nomad,
        lambda: all(
            any(item.status == "blocked" for item in nomad.job(child).evals.values()) for child in children
        ),
    )

    nomad.resize_node("node-1", cpu=600)

    for child in children:
        await status(nomad, child, "dead")
    ran = [run["job_id"] for run in nomad.engine.clients.runs]
    assert ran == [children[1], children[3], children[2], children[0]]
