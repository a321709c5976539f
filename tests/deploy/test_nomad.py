"""The worker on Nomad: a real agent takes its job and its policies, and it does its work under the least.

The agent has no Docker: the job is planned as it is, and run with the task's driver exchanged for raw_exec.
"""

import json
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.deploy.acl_agent import Agent, agent
from tests.deploy.chart import ROOT
from worker.client import DispatchClient, RedisOptions
from worker.core.reply import Reply
from worker.dev.embedded_redis import EmbeddedRedis

pytestmark = pytest.mark.anyio

FOLDER = ROOT / "deploy" / "nomad"
SPECIFICATION = FOLDER / "dispatch-worker.nomad.hcl"
POLICIES = sorted((FOLDER / "policies").glob("*.hcl"))
EXAMPLES = sorted((FOLDER / "jobs").glob("*.nomad.hcl"))
PASSWORD = "correct:horse#battery"
WAIT_SECONDS = 60
POLICY = '[streams.requests]\njobs = ["render", "encode"]\n'
VARIABLES = ("-var", "count=1", "-var", f"policy={POLICY}")


def commands(path: Path) -> list[list[str]]:
    """The commands that a file's head tells its reader to use."""
    lines = re.findall(r"^#   (nomad .*)$", path.read_text(), re.MULTILINE)
    return [shlex.split(part)[1:] for line in lines for part in line.split(" && ")]


@pytest.fixture(scope="module")
def nomad() -> Iterator[Agent]:
    with agent() as made:
        for command in commands(SPECIFICATION):
            if command[0] == "namespace":
                made.nomad(*command)
        yield made


@pytest.mark.nomad
@pytest.mark.deploy
@pytest.mark.parametrize("path", [SPECIFICATION, *EXAMPLES], ids=lambda path: path.name.partition(".")[0])
def test_nomad_takes_the_job(nomad: Agent, path: Path) -> None:
    assert "Job validation successful" in nomad.nomad("job", "validate", path)
    # 1: it would be made. 255 would be a fault.
    planned = nomad.nomad("job", "plan", path, codes=(0, 1))
    assert "Job: " in planned
    nomad.nomad("fmt", "-check", path)


@pytest.mark.nomad
@pytest.mark.deploy
@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_nomad_takes_the_policy_as_its_file_says(nomad: Agent, path: Path) -> None:
    (command,) = commands(path)
    nomad.nomad(*command)

    name = command[-2]
    with nomad.http() as http:
        told = http.get(f"/v1/acl/policy/{name}").json()
    assert told["JobACL"]["JobID"] == "dispatch-worker"
    assert told["JobACL"]["Namespace"] == "platform"
    nomad.nomad("acl", "policy", "delete", name)


def test_time_to_drain_is_less_than_time_to_be_killed() -> None:
    text = SPECIFICATION.read_text()

    assert re.search(r'kill_timeout = "\$\{var\.drain_seconds \+ 10\}s"', text)
    assert "WORKER_DRAIN_SECONDS = var.drain_seconds" in text


def runnable(nomad: Agent) -> dict[str, Any]:
    """The job as it is, but for what needs Docker."""
    told: dict[str, Any] = json.loads(nomad.nomad("job", "run", "-output", *VARIABLES, SPECIFICATION))
    (group,) = told["Job"]["TaskGroups"]
    (task,) = group["Tasks"]
    task["Driver"] = "raw_exec"
    task["User"] = ""
    task["Config"] = {"command": sys.executable, "args": ["-m", "worker", *task["Config"]["args"]]}
    task["Env"] |= {"PYTHONPATH": str(ROOT), "WORKER_LOG_TAIL_BYTES": "200"}
    # Bounds on the wait of this test, not on what is tested.
    group["Update"] = {**(group["Update"] or {}), "MinHealthyTime": 2_000_000_000}
    told["Job"]["Update"] = {**told["Job"]["Update"], "MinHealthyTime": 2_000_000_000}
    return told


@asynccontextmanager
async def redis_with_a_user() -> AsyncIterator[tuple[str, str]]:
    """A Redis with the user that the guide describes: its address for this test, and for the worker."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (rule,) = re.findall(r"```\nACL SETUSER worker (.*?)\n```", text, re.DOTALL)
    words = rule.replace("\\\n", " ").replace(">PASSWORD", f">{PASSWORD}").split()
    async with EmbeddedRedis() as server:
        admin: Any = Redis.from_url(server.url)
        await admin.execute_command("ACL", "SETUSER", "worker", *words)
        await admin.aclose()
        yield server.url, server.url.replace("redis://", "redis://worker@")


def allocation(nomad: Agent) -> dict[str, Any]:
    """The worker's, once its checks have made the deployment a success."""
    path = "/v1/job/dispatch-worker/deployments?namespace=platform"
    nomad.until(path, lambda all_: all_ and all_[0]["Status"] == "successful", "the deployment is a success")
    (found,) = [
        one
        for one in nomad.until(
            "/v1/job/dispatch-worker/allocations?namespace=platform", bool, "an allocation"
        )
        if one["ClientStatus"] == "running"
    ]
    return dict(found)


@pytest.mark.nomad
@pytest.mark.deploy
async def test_the_worker_does_its_work_under_the_least_policy(nomad: Agent, tmp_path: Path) -> None:
    apply = {path.stem: commands(path)[0] for path in POLICIES}
    nomad.nomad(*apply["worker"])
    for path in EXAMPLES:
        nomad.nomad("job", "run", "-detach", "-namespace", "dispatch", path)
    async with redis_with_a_user() as (own_url, workers_url), DispatchClient(RedisOptions(own_url)) as client:
        variables = (f"redis_url={workers_url}", f"redis_password={PASSWORD}")
        nomad.nomad("var", "put", "-namespace", "platform", "nomad/jobs/dispatch-worker", *variables)
        made = tmp_path / "job.json"
        made.write_text(json.dumps(runnable(nomad)))
        nomad.nomad("job", "run", "-detach", "-json", made)
        runs = allocation(nomad)

        async def asked(job: str, **fields: Any) -> Reply:
            return await client.wait(await client.send(job=job, **fields), timeout=WAIT_SECONDS)

        good = await asked("render", payload=b"a scene", meta={"who": "ada"})
        bad = await asked("render", meta={"code": "3"})
        refused = await asked("encode", payload=b"{}")
        assert [(one.verdict, one.exit_code) for one in (good, bad, refused)] == [
            ("succeeded", 0),
            ("failed", 3),
            ("rejected", None),
        ]
        the_token_may_no_more(nomad, runs, str(good.dispatched_job_id))

        # Now it may stop jobs, and read what they print.
        nomad.nomad(*apply["worker-cancel"])
        nomad.nomad(*apply["worker-logs"])
        late = await asked("render", meta={"seconds": "600"}, timeout_seconds=3)
        assert late.verdict == "timed_out"

        nomad.nomad("job", "stop", "-namespace", "platform", "dispatch-worker")
        ended = nomad.until(
            f"/v1/allocation/{runs['ID']}",
            lambda one: one["ClientStatus"] != "running",
            "the worker has ended",
        )
    exits = [
        event["ExitCode"]
        for event in ended["TaskStates"]["worker"]["Events"]
        if event["Type"] == "Terminated"
    ]
    assert exits == [0], ended["TaskStates"]["worker"]["Events"]


def the_token_may_no_more(nomad: Agent, runs: dict[str, Any], child: str) -> None:
    """What the worker's own token, read from where the worker reads it, is refused."""
    secrets = nomad.secrets_of(runs["ID"], "worker")
    token = (secrets / "nomad_token").read_text().strip()
    assert (secrets / "api.sock").is_socket()
    job = json.loads(nomad.nomad("job", "run", "-output", EXAMPLES[0]))["Job"] | {"ID": "planted"}
    with nomad.http(token) as http:
        assert http.get(f"/v1/job/{child}?namespace=dispatch").status_code == 200
        for method, path, body in (
            ("DELETE", f"/v1/job/{child}?namespace=dispatch", None),
            ("PUT", "/v1/jobs?namespace=dispatch", {"Job": {**job, "Namespace": "dispatch"}}),
            ("PUT", "/v1/jobs?namespace=platform", {"Job": {**job, "Namespace": "platform"}}),
            ("POST", "/v1/job/render/dispatch?namespace=platform", {}),
            ("GET", "/v1/job/dispatch-worker?namespace=platform", None),
            ("GET", "/v1/nodes", None),
            ("GET", "/v1/acl/tokens", None),
        ):
            assert http.request(method, path, json=body).status_code == 403, path
