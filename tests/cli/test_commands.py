"""Commands end with one clear message and a code; none shows a traceback for what can be expected."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from worker import __version__
from worker.runtime.health import Health
from worker.runtime.http import HttpServer
from worker.runtime.statuspage.actions import Order
from worker.runtime.statuspage.serve import Answer
from worker.settings import Listen, markdown

pytestmark = pytest.mark.anyio

SOON = 20.0
CANARY = "c4n4ry-0f-a-t0k3n"


def environment(**more: str) -> dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NOMAD_", "REDIS_", "WORKER_"))
    }
    return clean | more


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as people run it."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )


def test_the_version_and_the_commands_are_told() -> None:
    version, help_text = run("--version"), run("--help")

    assert (version.returncode, version.stdout) == (0, f"dispatch-worker {__version__}\n")
    assert help_text.returncode == 0
    for command in ("run", "dev", "dispatch", "wait", "simulator", "config", "schema", "healthcheck"):
        assert f"\n  {command} " in help_text.stdout


def test_faulty_settings_are_told_all_at_once_without_a_traceback_or_a_secret() -> None:
    ended = run("run", WORKER_LEASE_SECONDS="nine", WORKER_LEASE="9", NOMAD_TOKEN_FILE=CANARY)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert [line.split()[1].partition("=")[0] for line in ended.stderr.splitlines()] == [
        "NOMAD_TOKEN_FILE",
        "WORKER_LEASE",
        "WORKER_LEASE_SECONDS",
    ]
    assert "Traceback" not in ended.stderr
    assert CANARY not in ended.stderr


def test_the_settings_in_force_are_shown_with_secrets_masked() -> None:
    variables = {"NOMAD_TOKEN": CANARY, "REDIS_URL": f"redis://:{CANARY}@h", "WORKER_MAX_IN_FLIGHT": "7"}

    table = run("config", **variables)
    as_json = run("config", "--format", "json", **variables)

    assert "\nWORKER_MAX_IN_FLIGHT=7\n" in table.stdout
    assert "\n#WORKER_LEASE_SECONDS=9\n" in table.stdout
    assert {row["name"]: row["value"] for row in json.loads(as_json.stdout)}["REDIS_URL"] == "redis://***@h"
    assert CANARY not in table.stdout + as_json.stdout


def test_the_reference_can_be_made_again() -> None:
    assert run("config", "--format", "markdown").stdout == markdown()


def test_the_schemas_are_json() -> None:
    both, one = run("schema"), run("schema", "reply")

    assert set(json.loads(both.stdout)) == {"request", "reply", "dead-letter", "policy"}
    assert json.loads(one.stdout) == json.loads(both.stdout)["reply"]


@pytest.mark.parametrize(
    "arguments",
    [["simulator", "--jobs", "/nowhere"], ["simulator", "--port", "70000"], ["schema", "x"], ["nonsense"]],
)
def test_wrong_arguments_are_explained(arguments: list[str]) -> None:
    ended = run(*arguments)

    assert ended.returncode == 2
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
async def alive() -> AsyncIterator[tuple[Health, dict[str, str]]]:
    """A worker's server, and the variables of a command that asks it."""

    async def no_metrics(_accept: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    class NoPage:
        async def show(self, query: Mapping[str, str]) -> str:
            return f"{query}"

        async def order(self, order: Order) -> Answer:
            return Answer(403, f"{order}")

    async def no_status() -> dict[str, str]:
        return {}

    health = Health(30)
    server = HttpServer(Listen("127.0.0.1", 0), health, no_metrics, no_status, NoPage())
    task = asyncio.create_task(server.run())
    await asyncio.wait_for(server.serving.wait(), SOON)
    yield health, {"WORKER_HTTP_ADDR": f":{server.port}"}
    task.cancel()
    await asyncio.wait({task})


async def test_a_worker_is_healthy_while_its_loops_come_round(alive: tuple[Health, dict[str, str]]) -> None:
    health, variables = alive

    well = await asyncio.to_thread(run, "healthcheck", **variables)
    health.condition("redis", ok=False, reason="no answer")
    unready = await asyncio.to_thread(lambda: run("healthcheck", "--ready", **variables))
    still_well = await asyncio.to_thread(run, "healthcheck", **variables)
    health.loop("intake", stall_seconds=-1)
    stalled = await asyncio.to_thread(run, "healthcheck", **variables)

    assert [ended.returncode for ended in (well, unready, still_well, stalled)] == [0, 1, 0, 1]
    assert "no answer" in unready.stderr
    assert "intake" in stalled.stderr


def test_nobody_answers_is_not_healthy() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ended = run("healthcheck", WORKER_HTTP_ADDR=f"127.0.0.1:{unused.getsockname()[1]}")

    assert ended.returncode == 1
    assert "no answer from 127.0.0.1:" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands that go on; what is left of them is ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def starting(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "worker", *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield starting
    for process in processes:
        process.kill()
        process.communicate(timeout=SOON)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_simulator_serves_job_files_until_it_is_told_to_stop(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    job = {
        "ID": "greet",
        "Type": "batch",
        "ParameterizedJob": {"Payload": "optional"},
        "TaskGroups": [{"Name": "g", "Tasks": [{"Name": "t", "Driver": "mock_driver", "Config": {}}]}],
    }
    (tmp_path / "greet.json").write_text(json.dumps({"Job": job}))

    simulator = start("simulator", "--port", "0", "--jobs", str(tmp_path), "--nodes", "3")
    assert simulator.stdout is not None
    address = simulator.stdout.readline().split()[-1]
    jobs = httpx.get(f"{address}/v1/jobs", timeout=SOON).json()
    nodes = httpx.get(f"{address}/v1/nodes", timeout=SOON).json()
    simulator.send_signal(number)

    assert ([job["ID"] for job in jobs], len(nodes)) == (["greet"], 3)
    assert simulator.wait(SOON) == 0


def test_a_port_that_is_taken_is_explained() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        ended = run("simulator", "--port", str(holder.getsockname()[1]))

    assert ended.returncode == 2
    assert "cannot listen on 127.0.0.1:" in ended.stderr
