"""`dispatch-worker dispatch` beside recordings of `nomad job dispatch`, line by line, through a whole stack.

IDs and times aside. What differs on purpose is listed with its reason.
"""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from worker.dev.simulator.jobfile import canonical_job
from worker.testing import Node, Simulator, Stack

pytestmark = pytest.mark.anyio

RECORDED = Path(__file__).parent / "recorded" / "nomad-job-dispatch.txt"
SOON = 30.0

OTHER_EXIT_CODES = {
    # Nomad's own documentation says 2; its command exits with 1.
    "placement failure by constraint: exit 2": 2,
    "placement failure by resources: exit 2": 2,
    # Nomad's -wait answers 2 for any failed task; here it is the task's own code.
    "-wait, task fails: exit 2": 3,
}

NAMES_THE_COMMAND = frozenset({"unknown flag", "-help", "no argument", "too many arguments"})
"""Compared with this command's name in the place of Nomad's; of a usage text, its first line."""

OTHERWISE = {
    "-idempotency-token, repeat (no Evaluation ID line)": "says 'already dispatched', as older versions do",
    "-idempotency-token, repeat, not detached: returns at once, exit 0": "the same",
    "server down": "the queue outlasts it",
    "-wait, success": "goes on with the job's end",
    "-wait, task fails: exit 2": "goes on with the job's end; its exit code is compared",
    "ACL: no token": "the worker's token counts, not the producer's",
    "ACL: management token": "the same",
    "ACL: invalid token": "the same",
    "ACL: token with dispatch-job + read-job but no list-jobs": "the same",
}
"""Differs on purpose; each has a test of its own."""

REPEATED = ("dispatch", "-detach", "-idempotency-token", "tok-2")
MANAGER = "6d6d2b5c-0000-4000-8000-000000000001"
MODEST = "6d6d2b5c-0000-4000-8000-000000000002"


@dataclass(frozen=True)
class Scenario:
    title: str
    words: tuple[str, ...]
    stdin: bytes
    stdout: str
    stderr: str
    code: int


def scenarios() -> list[Scenario]:
    found = []
    for part in RECORDED.read_text().split("\n### ")[1:]:
        title, command, rest = part.split("\n", 2)
        given = re.search(r"\(stdin: b'(.*)'\)", command)
        line = re.sub(r"\s+\(stdin:.*", "", command.removeprefix("$ nomad job "))
        _, stdout, stderr, code = re.split(r"^--- (?:stdout|stderr|exit) ?", rest, flags=re.MULTILINE)
        found.append(
            Scenario(
                title,
                tuple(shlex.split(line)),
                given[1].encode() if given else b"",
                stdout.removeprefix("\n"),
                stderr.removeprefix("\n"),
                int(code.split()[0]),
            )
        )
    return found


SCENARIOS = {scenario.title: scenario for scenario in scenarios()}


def alike(text: str) -> list[str]:
    """The lines without what differs from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = re.sub(r"dispatch-(tenant7-)?\d+-[0-9a-f]{8}", r"dispatch-\1ID", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "LONG-ID", text)
    text = re.sub(r'(?<=["= ])[0-9a-f]{8}(?=["\s]|$)', "ID", text)
    text = re.sub(r"http://127\.0\.0\.1:\d+", "ADDRESS", text)
    # Whether a quick job ends while its placement is still watched is chance.
    return [line for line in text.splitlines() if "status changed: " not in line or "Allocation" not in line]


def batch(job_id: str, **changes: Any) -> dict[str, Any]:
    config = {"run_for": "${NOMAD_META_seconds}s", "exit_code": "${NOMAD_META_code}"}
    task = {"Name": "t", "Driver": "mock_driver", "Config": config, "Resources": {"CPU": 20, "MemoryMB": 10}}
    task |= {"LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1}, **changes.pop("task", {})}
    group = {"Name": "g", "RestartPolicy": {"Attempts": 0, "Mode": "fail"}, "Tasks": [task]}
    group |= {"ReschedulePolicy": {"Attempts": 0, "Unlimited": False}}
    base = {
        "ID": job_id,
        "Type": "batch",
        "Datacenters": ["dc1"],
        "Meta": {"seconds": "1", "code": "0"},
        "ParameterizedJob": {"MetaOptional": ["who", "code", "seconds"]},
        "TaskGroups": [group],
    }
    return canonical_job(base | changes)


def jobs() -> list[dict[str, Any]]:
    gpu = [{"LTarget": "${node.class}", "RTarget": "gpu", "Operand": "="}]
    return [
        batch("cli-render"),
        batch("cli-req", ParameterizedJob={"Payload": "required", "MetaRequired": ["tenant"]}),
        batch("cli-forbid", ParameterizedJob={"Payload": "forbidden"}),
        batch("cli-plain", ParameterizedJob=None),
        batch("cli-report-a"),
        batch("cli-report-b"),
        batch("cli-constr", Constraints=gpu),
        batch("cli-big", task={"Resources": {"CPU": 9_000_000, "MemoryMB": 10}}),
    ]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    nodes = [
        Node("b7d1d114-1eda-97b7-2b03-a87daa9b646b", "node-1"),
        Node("4defc11d-1eda-97b7-2b03-a87daa9b646b", "node-2", node_class="victim"),
    ]
    async with Stack(nomad=Simulator(jobs(), nodes=nodes)) as made:
        yield made


async def run(
    stack: Stack, folder: Path, scenario: Scenario, *, merged: bool = False, **more: str
) -> tuple[str, str, int]:
    (folder / "p.txt").write_bytes(b"x")
    (folder / "p16385").write_bytes(bytes(16_385))
    words = [re.sub(r"^/path/(?!nofile)", f"{folder}/", word) for word in scenario.words]
    words = [word.replace("http://127.0.0.1:14646", stack.nomad.address) for word in words]
    hints = {"NOMAD_CLI_SHOW_HINTS": "false"} if scenario.title == "hints off" else {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from worker.cli import main; main()", *words),
        env={"PATH": os.environ["PATH"], **stack.environment, **hints, **more},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if merged else asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SOON):
        out, error = await process.communicate(scenario.stdin)
    return out.decode(), (error or b"").decode(), process.returncode or 0


@pytest.mark.parametrize("title", [title for title in SCENARIOS if title not in OTHERWISE])
async def test_the_command_says_what_nomads_says(stack: Stack, tmp_path: Path, title: str) -> None:
    scenario = SCENARIOS[title]

    stdout, stderr, code = await run(stack, tmp_path, scenario)

    said, told = alike(scenario.stdout), alike(scenario.stderr)
    if title in NAMES_THE_COMMAND:
        said, told = (
            [line.replace("nomad job", "dispatch-worker") for line in part] for part in (said, told)
        )
    if "(full usage text omitted)" in said:
        stdout, said = stdout.splitlines()[0], said[:1]
    assert alike(stdout) == said
    assert alike(stderr) == told
    assert code == OTHER_EXIT_CODES.get(title, scenario.code)


async def test_the_link_stands_where_nomads_command_puts_it(stack: Stack, tmp_path: Path) -> None:
    scenario = SCENARIOS["success, monitored"]

    stdout, _, _ = await run(stack, tmp_path, scenario, merged=True)

    said = alike(scenario.stdout)
    assert alike(stdout) == [*said[:3], *alike(scenario.stderr), *said[3:]]


@pytest.mark.parametrize("title", ["-wait, success", "-wait, task fails: exit 2"])
async def test_wait_begins_as_nomads_and_goes_on_to_the_end(stack: Stack, tmp_path: Path, title: str) -> None:
    scenario = SCENARIOS[title]

    stdout, _, code = await run(stack, tmp_path, scenario)

    lines = alike(stdout)
    assert lines[: len(alike(scenario.stdout))] == alike(scenario.stdout)
    assert code == OTHER_EXIT_CODES.get(title, scenario.code)


async def test_a_nomad_that_is_down_for_the_producer_does_not_matter(stack: Stack, tmp_path: Path) -> None:
    scenario = SCENARIOS["server down"]

    stdout, _, code = await run(stack, tmp_path, scenario, NOMAD_ADDR="http://127.0.0.1:9")

    assert alike(stdout) == alike(SCENARIOS["success, monitored"].stdout)
    assert code == 0


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Stack]:
    """Where ACLs are on, and the worker's own token may dispatch and read, not list."""
    acl = {
        "policies": {"modest": {"default": ["dispatch-job", "read-job"]}},
        "tokens": [
            {"secret": MANAGER, "type": "management", "name": "manager"},
            {"secret": MODEST, "policies": ["modest"], "name": "modest"},
        ],
    }
    async with Stack(nomad=Simulator([batch("render")], acl=acl), settings={"NOMAD_TOKEN": MODEST}) as made:
        yield made


@pytest.mark.parametrize(
    ("title", "token"),
    [
        ("ACL: no token", ""),
        ("ACL: management token", MANAGER),
        ("ACL: invalid token", "6d6d2b5c-0000-4000-8000-00000000dead"),
        ("ACL: token with dispatch-job + read-job but no list-jobs", MODEST),
    ],
)
async def test_the_workers_token_counts_and_not_the_producers(
    guarded: Stack, tmp_path: Path, title: str, token: str
) -> None:
    scenario = SCENARIOS[title]
    granted = SCENARIOS["ACL: token with dispatch-job + read-job but no list-jobs"]

    stdout, _, code = await run(guarded, tmp_path, scenario, NOMAD_TOKEN=token)

    assert alike(stdout) == alike((scenario if "-detach" in scenario.words else granted).stdout)
    assert code == 0


async def test_a_repeat_says_so(stack: Stack, tmp_path: Path) -> None:
    first = replace(SCENARIOS["-idempotency-token, first"], words=(*REPEATED, "cli-render"))
    out, _, _ = await run(stack, tmp_path, first)
    repeat, _, code = await run(stack, tmp_path, first)

    job_id = re.findall(r"(cli-render/dispatch-\d+-[0-9a-f]+)", out)[0]
    assert repeat == f'Job "{job_id}" already dispatched with idempotency token "tok-2".\n'
    assert code == 0


def test_what_differs_was_recorded() -> None:
    assert set(OTHERWISE) | NAMES_THE_COMMAND | set(OTHER_EXIT_CODES) <= set(SCENARIOS)
