"""A job's output as it is followed, where a part of it is not to be had."""

import json

import pytest
from aiohttp import web

from tests.adapters.nomad.agent import running_agent
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.cli.console import Console
from worker.cli.logs import LogFollower
from worker.core.reply import Reply

pytestmark = pytest.mark.anyio

CHILD = "render/dispatch-1-a"
FINAL = Reply(type="result", id="1-0", stream="requests", seq=3, final=True, dispatched_job_id=CHILD)


async def answer(request: web.Request) -> web.Response:
    """A Nomad one of whose nodes is away."""
    if "/client/fs/logs/gone" in request.path:
        return web.Response(status=404, text="No path to node")
    if "/client/fs/logs/here" in request.path:
        return web.Response(text="from the other node\n" if request.query["type"] == "stdout" else "")
    if request.path.endswith("/allocations"):
        tasks = {"t": {"State": "dead"}}
        stubs = [{"ID": one, "JobID": CHILD, "TaskStates": tasks} for one in ("gone", "here")]
        return web.Response(text=json.dumps(stubs))
    if request.path.endswith("/evaluations"):
        return web.Response(text="[]")
    return web.Response(text=json.dumps({"ID": CHILD, "Status": "dead"}))


async def test_a_node_that_is_away_does_not_hide_what_others_write(capfd: pytest.CaptureFixture[str]) -> None:
    async with running_agent() as agent:
        agent.handler = answer
        follower = LogFollower(NomadClient(NomadOptions(address=agent.address)), Console(json_lines=False))
        async with follower:
            await follower.hear(FINAL)

    assert capfd.readouterr().out == "from the other node\n"
