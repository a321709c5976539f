"""The Nomads the contract is checked on: the simulator, and a real one where there is one.

A real one is the agent at NOMAD_ADDR, else `nomad` on PATH, started once per session in dev mode.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.nomad_cluster import Cluster
from worker.dev.simulator import Simulator

START_SECONDS = 60.0
STOP_SECONDS = 15.0

AGENT = """
bind_addr = "127.0.0.1"
ports {{ http = {http}  rpc = {rpc}  serf = {serf} }}
data_dir  = "{data}"
client {{
  # Fingerprints that ask the network, or that a loopback agent has no use for.
  options = {{
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,cni,vault,consul,bridge"
  }}
}}
plugin "raw_exec" {{ config {{ enabled = true }} }}
"""


def free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for one in with_sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()


def wait_until_ready(address: str, agent: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if agent.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/v1/nodes", timeout=2) as response:
                if b'"Status":"ready"' in response.read():
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    pytest.fail(f"`nomad agent -dev` did not become ready:\n{tail}")


def unmount_below(folder: Path) -> None:
    """Let go of the task directories in memory that an agent run by root leaves when it ends."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    points = [line.split()[1] for line in mounts.read_text().splitlines()]
    if below := [point for point in points if point.startswith(f"{folder}/")]:
        subprocess.run(["umount", *below], check=False, timeout=STOP_SECONDS)


@contextmanager
def dev_agent(program: str) -> Iterator[str]:
    """Start an agent in dev mode, and end it. Gives its address."""
    # A short path: a task's API socket lies deep in it, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="nomad-"))
    http, rpc, serf = free_ports(3)
    (folder / "agent.hcl").write_text(AGENT.format(http=http, rpc=rpc, serf=serf, data=folder / "data"))
    log = folder / "agent.log"
    # An own certificate bundle for AWS makes the agent's start fail on machines that are none of AWS's.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    environment["TMPDIR"] = str(folder)
    with log.open("wb") as output:
        agent = subprocess.Popen(
            [program, "agent", "-dev", "-config", str(folder / "agent.hcl")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{http}"
        wait_until_ready(address, agent, log)
        yield address
    finally:
        agent.send_signal(signal.SIGINT)
        try:
            agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait(STOP_SECONDS)
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real_nomad() -> Iterator[str]:
    """The address of a real Nomad."""
    if address := os.environ.get("NOMAD_ADDR"):
        yield address.rstrip("/")
        return
    program = shutil.which("nomad")
    if not program:
        pytest.skip("no real Nomad: NOMAD_ADDR is not set and there is no `nomad` on PATH")
    with dev_agent(program) as address:
        yield address


@pytest.fixture(params=["simulator", pytest.param("nomad", marks=pytest.mark.nomad)])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    if request.param == "nomad":
        nomad = Cluster(await asyncio.to_thread(request.getfixturevalue, "real_nomad"))
        try:
            yield nomad
        finally:
            await nomad.clean()
        return
    async with Simulator(heartbeat_seconds=0.2) as simulated:
        yield Cluster(simulated.address, heartbeat_seconds=0.2)
