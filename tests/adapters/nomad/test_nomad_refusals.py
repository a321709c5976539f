"""What Nomad's refusals mean where nobody asked it to start something."""

import pytest
from aiohttp import web

from tests.adapters.nomad.agent import Agent
from tests.adapters.nomad.test_nomad_client import ABOUT_A_JOB, CHILD, DISPATCHED, HERE, Call, client
from worker.core.model import Order, Place
from worker.errors import NomadRefused, NomadUnavailable, RegionUnknown, RegionUnreachable

pytestmark = pytest.mark.anyio

NO_PATH = (500, "No path to region")


@pytest.mark.parametrize(
    ("status", "text"), [NO_PATH, (400, "Bad Request"), (413, "too large"), (431, "header fields")]
)
@pytest.mark.parametrize("call", ABOUT_A_JOB)
async def test_no_refusal_of_a_question_about_a_job_says_anything_about_the_job(
    agent: Agent, call: Call, status: int, text: str
) -> None:
    agent.answers(status, text)

    async with client(agent) as nomad:
        with pytest.raises(NomadUnavailable) as caught:
            await call(nomad)

    assert text in str(caught.value)


async def test_an_event_stream_that_is_refused_may_be_opened_later(agent: Agent) -> None:
    agent.answers(*NO_PATH)

    async with client(agent) as nomad:
        with pytest.raises(NomadUnavailable):
            await anext(nomad.events(HERE, 0, lambda _: True))


async def test_a_region_without_a_path_is_unknown_until_it_has_answered_once(agent: Agent) -> None:
    eu, mars = Order(Place("eu", ""), "r", "1-0"), Order(Place("mars", ""), "r", "1-0")

    async with client(agent) as nomad:
        agent.answers(*NO_PATH)
        with pytest.raises(RegionUnknown) as unknown:
            await nomad.dispatch(eu)
        agent.answers(text=DISPATCHED)
        await nomad.dispatch(eu)
        agent.answers(*NO_PATH)
        with pytest.raises(RegionUnreachable) as unreachable:
            await nomad.dispatch(eu)
        with pytest.raises(RegionUnknown):
            await nomad.dispatch(mars)

    assert isinstance(unknown.value, NomadRefused)
    assert not unreachable.value.maybe_applied


async def test_a_job_purged_while_its_evaluations_are_read_is_gone(agent: Agent) -> None:
    async def purged(request: web.Request) -> web.Response:
        if request.path.endswith("/evaluations"):
            return web.Response(status=404, text="job not found")
        return web.json_response({"ID": CHILD, "Status": "dead"})

    agent.handler = purged

    async with client(agent) as nomad:
        assert (await nomad.snapshot(HERE, CHILD)).gone
