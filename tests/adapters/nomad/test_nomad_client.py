"""Requests of the client as an agent sees them, and its failures as the flow sees them."""

import asyncio
import base64
import gzip
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yarl
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.nomad.agent import Agent
from worker.adapters.nomad.calls import READS_AT_ONCE
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadConnection, NomadOptions
from worker.adapters.nomad.wording import job_path, literal
from worker.core.model import Order, Place
from worker.core.observed import Living
from worker.errors import (
    ChildUnknown,
    JobUnknown,
    NomadBusy,
    NomadDenied,
    NomadNoLeader,
    NomadTimeout,
    NomadUnavailable,
    Then,
)

pytestmark = pytest.mark.anyio

HERE = Place("", "")
CHILD = "render/dispatch-1795483190-8fc1d87e"
DISPATCHED = json.dumps({"DispatchedJobID": CHILD, "EvalID": "e", "Index": 5})
SECRET = "5ec2e700-dead-beef-0000-000000000001"


def client(agent: Agent, **options: object) -> NomadClient:
    return NomadClient(NomadOptions(address=agent.address, **options))  # type: ignore[arg-type]


# What is sent -------------------------------------------------------------------------------------


async def test_a_dispatch_sends_what_was_ordered_and_nothing_else(agent: Agent) -> None:
    agent.answers(text=DISPATCHED)
    order = Order(
        Place("eu", "team"),
        "render",
        "requests:1-0",
        payload=b"\xfb\xff?",
        meta={"who": "ada", "ü": ""},
        id_prefix="p",
        priority=70,
    )

    async with client(agent, token=SECRET) as nomad:
        dispatched = await nomad.dispatch(order)

    assert (dispatched.job_id, dispatched.eval_id, dispatched.repeated) == (CHILD, "e", False)
    [asked] = agent.asked
    assert (asked.method, urlsplit(asked.raw_path).path) == ("POST", "/v1/job/render/dispatch")
    assert parse_qs(urlsplit(asked.raw_path).query) == {
        "idempotency_token": ["requests:1-0"],
        "region": ["eu"],
        "namespace": ["team"],
    }
    assert json.loads(asked.body) == {
        "Payload": base64.standard_b64encode(b"\xfb\xff?").decode(),
        "Meta": {"who": "ada", "ü": ""},
        "IdPrefixTemplate": "p",
        "Priority": 70,
    }
    assert asked.headers["X-Nomad-Token"] == SECRET


async def test_a_bare_dispatch_names_no_place_and_sends_no_empty_field(agent: Agent) -> None:
    agent.answers(text=json.dumps({"DispatchedJobID": CHILD, "EvalID": ""}))

    async with client(agent) as nomad:
        dispatched = await nomad.dispatch(Order(HERE, "render", "1-0"))

    assert dispatched.repeated
    [asked] = agent.asked
    assert asked.raw_path == "/v1/job/render/dispatch?idempotency_token=1-0"
    assert json.loads(asked.body) == {}
    assert "X-Nomad-Token" not in asked.headers


async def test_a_place_that_names_nothing_means_the_configured_one(agent: Agent) -> None:
    agent.answers(status=404, text="job not found")

    async with client(agent, region="eu", namespace="team") as nomad:
        await nomad.job(HERE, CHILD)
        await nomad.job(Place("us", "other"), CHILD)

    assert [parse_qs(urlsplit(asked.raw_path).query) for asked in agent.asked] == [
        {"region": ["eu"], "namespace": ["team"]},
        {"region": ["us"], "namespace": ["other"]},
    ]


ODD_NAMES = [
    "a/b",
    "a/../b",
    "a//b",
    "x?y=1&z",
    "p%2fq",
    "per%cent",
    "ha#sh",
    "pl+us",
    "ünï",
    "a b",
    "a;b",
    "'\"<>",
]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_an_odd_job_name_stays_one_path_segment(agent: Agent, name: str) -> None:
    agent.answers(text=DISPATCHED)

    async with client(agent) as nomad:
        await nomad.dispatch(Order(HERE, name, "1-0"))

    path = urlsplit(agent.asked[0].raw_path).path
    assert path.count("/") == 4
    assert unquote(path) == f"/v1/job/{name}/dispatch"


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_job_name_that_http_cannot_carry_is_refused_unasked(agent: Agent, name: str) -> None:
    async with client(agent) as nomad:
        with pytest.raises(JobUnknown):
            await nomad.dispatch(Order(HERE, name, "1-0"))
        assert await nomad.job(HERE, name) is None
        await nomad.stop(HERE, name)

    assert agent.asked == []


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_name_and_token_survive_the_url_library_unchanged(name: str, token: str) -> None:
    if name in {".", ".."}:
        return
    connection = NomadConnection(NomadOptions())

    url = connection.url(job_path(name, "/dispatch"), [("idempotency_token", token)])

    sent = urlsplit("http://h" + yarl.URL(url).raw_path_qs)
    assert unquote(sent.path) == f"/v1/job/{name}/dispatch"
    assert sent.path.count("/") == 4
    assert parse_qs(sent.query, keep_blank_values=True, strict_parsing=True) == {"idempotency_token": [token]}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_filter_literal_is_one_string_that_reads_back_as_the_text(text: str) -> None:
    quoted = literal(text)

    inner = quoted[1:-1]
    assert quoted[0] == quoted[-1]
    assert quoted[0] not in inner
    if quoted[0] == "`":
        assert inner == text
        assert "\r" not in inner
    else:
        assert re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), inner) == text
        assert not inner.startswith("/") or "`" in inner or "\\" in inner


async def test_all_pages_of_live_children_are_read(agent: Agent) -> None:
    def stub(job_id: str, job_index: int, summary_index: int, status: str = "running") -> dict[str, object]:
        summary = {"ModifyIndex": summary_index}
        return {"ID": job_id, "Status": status, "ModifyIndex": job_index, "JobSummary": summary}

    async def pages(request: web.Request) -> web.StreamResponse:
        if "next_token" not in request.query:
            return web.json_response(
                [stub("r/dispatch-1", 7, 9)], headers={"X-Nomad-Nexttoken": "default.r/d 2"}
            )
        assert request.query["next_token"] == "default.r/d 2"
        return web.json_response([stub("r/dispatch-2", 8, 3, "pending")])

    agent.handler = pages

    async with client(agent) as nomad:
        found = await nomad.live_children(HERE, "r")

    assert found == {"r/dispatch-1": Living(9, waits=False), "r/dispatch-2": Living(8, waits=True)}
    query = parse_qs(urlsplit(agent.asked[0].raw_path).query)
    assert query["prefix"] == ["r/dispatch-"]
    assert query["filter"] == ['ParentID == "r" and Status != "dead"']


async def test_of_two_children_with_one_token_the_first_created_is_found(agent: Agent) -> None:
    agent.answers(text='[{"ID":"b","CreateIndex":9},{"ID":"a","CreateIndex":8},{"ID":"c","CreateIndex":10}]')

    async with client(agent) as nomad:
        assert await nomad.find_by_token(HERE, "r", "1-0") == "a"

    agent.answers(text="[]")
    async with client(agent) as nomad:
        assert await nomad.find_by_token(HERE, "r", "1-0") is None


async def test_a_job_purged_between_the_reads_of_a_snapshot_is_gone_and_not_without_allocations(
    agent: Agent,
) -> None:
    async def purged_after_first_read(request: web.Request) -> web.StreamResponse:
        if request.raw_path.endswith(("/evaluations", "/allocations")):
            return web.json_response([])
        if len(agent.asked) == 1:
            return web.json_response({"ID": CHILD, "Status": "dead"})
        return web.Response(status=404, text="job not found")

    agent.handler = purged_after_first_read

    async with client(agent) as nomad:
        snapshot = await nomad.snapshot(HERE, CHILD)

    assert (snapshot.gone, snapshot.job, snapshot.whole) == (True, None, True)


async def test_a_snapshot_links_allocations_backwards(agent: Agent) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.raw_path.endswith("/evaluations"):
            return web.Response(text="null")
        if request.raw_path.endswith("/allocations"):
            return web.json_response([{"ID": "new"}, {"ID": "old", "NextAllocation": "new"}])
        return web.json_response({"ID": CHILD, "Status": "running"})

    agent.handler = answer

    async with client(agent) as nomad:
        snapshot = await nomad.snapshot(HERE, CHILD)

    assert snapshot.allocations["new"].previous_allocation == "old"
    assert snapshot.allocations["old"].previous_allocation == ""
    assert snapshot.evaluations == {}


async def test_a_log_tail_is_never_longer_than_asked(agent: Agent) -> None:
    agent.answers(text="0123456789")

    async with client(agent) as nomad:
        assert await nomad.logs(HERE, "a" * 36, "t", "stderr", 4) == b"6789"

    query = parse_qs(urlsplit(agent.asked[0].raw_path).query)
    assert query == {
        "task": ["t"],
        "type": ["stderr"],
        "plain": ["true"],
        "origin": ["end"],
        "offset": ["4"],
    }


async def test_an_unwell_agent_still_tells_its_health(agent: Agent) -> None:
    agent.answers(500, '{"server":{"ok":false,"message":"No cluster leader"}}')

    async with client(agent) as nomad:
        health = await nomad.agent_health()

    assert not health.ok
    assert health.server
    assert health.server.message == "No cluster leader"


async def test_compressed_answers_are_read(agent: Agent) -> None:
    async def compressed(request: web.Request) -> web.StreamResponse:
        assert "gzip" in request.headers["Accept-Encoding"]
        return web.Response(body=gzip.compress(b'"127.0.0.1:4647"'), headers={"Content-Encoding": "gzip"})

    agent.handler = compressed

    async with client(agent) as nomad:
        assert await nomad.leader() == "127.0.0.1:4647"


async def test_a_dispatch_does_not_have_its_short_answer_compressed(agent: Agent) -> None:
    agent.answers(text='{"DispatchedJobID":"render/dispatch-1-aaaaaaaa","EvalID":"e"}')

    async with client(agent) as nomad:
        await nomad.dispatch(Order(HERE, "render", "1-0"))

    # Nomad compresses whatever it may, and that takes it a third of a dispatch.
    assert agent.asked[-1].headers["Accept-Encoding"] == "identity"


# What goes wrong ----------------------------------------------------------------------------------


async def failure_of(nomad: NomadClient) -> NomadUnavailable:
    with pytest.raises(NomadUnavailable) as caught:
        await nomad.dispatch(
            Order(HERE, "render", "1-0", payload=b"canary-payload", meta={"k": "canary-meta"})
        )
    assert "canary" not in str(caught.value)
    return caught.value


async def test_where_nobody_listens_nothing_was_applied() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"

        async with NomadClient(NomadOptions(address=address)) as nomad:
            error = await failure_of(nomad)

    assert not error.maybe_applied
    assert address.removeprefix("http://") in str(error)


async def test_a_name_that_does_not_resolve_means_nothing_was_applied() -> None:
    async with NomadClient(NomadOptions(address="http://nomad.invalid:4646")) as nomad:
        error = await failure_of(nomad)

    assert not error.maybe_applied


async def test_a_server_that_drops_the_connection_after_the_request_may_have_applied_it(
    agent: Agent,
) -> None:
    async def drop(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    agent.handler = drop

    async with client(agent) as nomad:
        error = await failure_of(nomad)

    assert len(agent.asked) == 1, "a dispatch is sent once"
    assert error.maybe_applied


async def test_an_answer_cut_off_in_its_middle_may_have_been_applied(agent: Agent) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"Dispatched')
        assert request.transport is not None
        request.transport.close()
        return response

    agent.handler = cut

    async with client(agent) as nomad:
        error = await failure_of(nomad)

    assert error.maybe_applied


async def test_a_silent_server_is_left_after_the_whole_time_and_may_have_applied_it(agent: Agent) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    agent.handler = silent

    async with client(agent, dispatch_timeout_seconds=0.2) as nomad:
        error = await failure_of(nomad)
        async with asyncio.timeout(5):
            await agent.gone.wait()

    assert type(error) is NomadTimeout
    assert error.maybe_applied


async def test_a_server_that_drips_is_left_after_the_whole_time_too(agent: Agent) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    agent.handler = drip

    async with client(agent, dispatch_timeout_seconds=0.2) as nomad:
        assert type(await failure_of(nomad)) is NomadTimeout


async def test_a_full_pool_means_nothing_was_applied(agent: Agent) -> None:
    entered = asyncio.Event()

    async def busy(_: web.Request) -> web.StreamResponse:
        entered.set()
        await asyncio.Event().wait()
        return web.Response()

    agent.handler = busy

    async with client(agent, pool_size=1, connect_timeout_seconds=0.2) as nomad:
        first = asyncio.create_task(nomad.job(HERE, CHILD))
        await asyncio.wait_for(entered.wait(), 5)
        error = await failure_of(nomad)
        first.cancel()

    assert not error.maybe_applied
    assert len(agent.asked) == 1


async def test_reads_take_turns_on_a_few_connections_and_hold_up_neither_dispatches_nor_probes(
    agent: Agent,
) -> None:
    waiting: list[str] = []
    all_there, let_go = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            return web.json_response({"DispatchedJobID": CHILD, "EvalID": "e1"})
        if "leader" in request.path:
            return web.json_response("127.0.0.1:4647")
        waiting.append(request.path)
        if len(waiting) == READS_AT_ONCE:
            all_there.set()
        await let_go.wait()
        return web.Response(status=404, text="job not found")

    agent.handler = slow

    async with client(agent) as nomad:
        reads = [asyncio.create_task(nomad.job(HERE, CHILD)) for _ in range(5 * READS_AT_ONCE)]
        await asyncio.wait_for(all_there.wait(), 5)
        dispatched = await nomad.dispatch(Order(HERE, "render", "1-0"))
        leader = await nomad.leader()
        at_once = len(waiting)
        let_go.set()
        found = await asyncio.gather(*reads)

    assert (dispatched.job_id, bool(leader)) == (CHILD, True)
    assert at_once == READS_AT_ONCE
    assert found == [None] * len(reads)


async def test_too_many_connections_tell_how_long_to_wait(agent: Agent) -> None:
    agent.answers(429, "Your IP is issuing too many concurrent connections", {"Retry-After": "3"})

    async with client(agent) as nomad:
        error = await failure_of(nomad)

    assert isinstance(error, NomadBusy)
    assert (error.retry_after_seconds, error.maybe_applied) == (3.0, False)


async def test_a_redirect_is_not_followed(agent: Agent) -> None:
    agent.answers(307, "", {"Location": "/v1/jobs"})

    async with client(agent) as nomad:
        error = await failure_of(nomad)

    assert not error.maybe_applied
    assert len(agent.asked) == 1


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", '{"EvalID":"e"}', ""])
async def test_a_success_that_is_not_nomads_is_an_outage(agent: Agent, body: str) -> None:
    agent.answers(200, body)

    async with client(agent) as nomad:
        error = await failure_of(nomad)

    assert error.maybe_applied


async def test_a_foreign_404_does_not_say_that_a_job_is_gone(agent: Agent) -> None:
    agent.answers(404, "<html>nginx</html>")

    async with client(agent) as nomad:
        with pytest.raises(NomadUnavailable):
            await nomad.job(HERE, CHILD)
        with pytest.raises(NomadUnavailable):
            await nomad.snapshot(HERE, CHILD)


Call = Callable[[NomadClient], Awaitable[object]]
ABOUT_A_JOB: list[Call] = [
    lambda nomad: nomad.job(HERE, CHILD),
    lambda nomad: nomad.find_by_token(HERE, "r", "1-0"),
    lambda nomad: nomad.live_children(HERE, "r"),
    lambda nomad: nomad.snapshot(HERE, CHILD),
    lambda nomad: nomad.stop(HERE, CHILD),
    lambda nomad: nomad.purge(HERE, CHILD),
]
CALLS: list[Call] = [
    lambda nomad: nomad.dispatch(Order(HERE, "r", "1-0")),
    *ABOUT_A_JOB,
    lambda nomad: nomad.parents(HERE),
    lambda nomad: nomad.leader(),
    lambda nomad: nomad.logs(HERE, "a", "t", "stdout", 10),
    lambda nomad: nomad.agent_health(),
]


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_names_denial_and_outage_and_shows_no_token(agent: Agent, call: Call) -> None:
    async with client(agent, token=SECRET) as nomad:
        agent.answers(403, f"Permission denied for {SECRET}")
        with pytest.raises(NomadDenied) as denied:
            await call(nomad)
        agent.answers(500, "No cluster leader")
        with pytest.raises(NomadNoLeader) as lost:
            await call(nomad)

    assert denied.value.then is Then.PAUSE
    for error in (denied.value, lost.value):
        assert SECRET not in str(error) + repr(error)


async def test_an_unknown_token_is_none_and_a_vanished_log_is_named(agent: Agent) -> None:
    async with client(agent) as nomad:
        agent.answers(403, "Permission denied")
        assert await nomad.token_self() is None
        agent.answers(404, 'Unknown allocation "x"')
        with pytest.raises(ChildUnknown):
            await nomad.logs(HERE, "x", "t", "stdout", 10)


async def test_each_request_is_measured_once(agent: Agent) -> None:
    seen: list[tuple[str, str]] = []

    def observe(operation: str, code: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        seen.append((operation, code))

    options = NomadOptions(address=agent.address, dispatch_timeout_seconds=0.2)
    async with NomadClient(options, on_request=observe) as nomad:
        agent.answers(text=DISPATCHED)
        await nomad.dispatch(Order(HERE, "r", "1-0"))
        agent.answers(500, "No cluster leader")
        with pytest.raises(NomadNoLeader):
            await nomad.job(HERE, CHILD)
        await_forever = asyncio.Event()

        async def silent(_: web.Request) -> web.StreamResponse:
            await await_forever.wait()
            return web.Response()

        agent.handler = silent
        with pytest.raises(NomadTimeout):
            await nomad.dispatch(Order(HERE, "r", "1-0"))

    assert seen == [("dispatch", "200"), ("job", "500"), ("dispatch", "error")]


async def test_nothing_is_logged_about_a_request(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    agent.answers(text=DISPATCHED)

    with caplog.at_level(logging.INFO):
        async with client(agent, token=SECRET) as nomad:
            await nomad.dispatch(Order(HERE, "r", "1-0"))

    assert caplog.records == []
    assert SECRET not in repr(nomad) + repr(NomadOptions(token=SECRET))
