"""A real Nomad agent with its ACLs on, for what only it can judge.

Knows nothing of the worker.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.conftest import AGENT, STOP_SECONDS, free_ports, unmount_below
from tests.deploy.chart import ROOT

START_SECONDS = 90.0


@dataclass(frozen=True)
class Agent:
    """It, and the token that may do everything."""

    address: str
    folder: Path
    token: str = ""

    def http(self, token: str | None = None) -> httpx.Client:
        given = self.token if token is None else token
        return httpx.Client(base_url=self.address, headers={"X-Nomad-Token": given}, timeout=30)

    def nomad(self, *arguments: str | Path, given: str = "", codes: tuple[int, ...] = (0,)) -> str:
        """Its own command line, as an operator uses it in the repository."""
        ended = subprocess.run(
            ["nomad", *map(str, arguments)],
            input=given,
            env={"PATH": os.environ["PATH"], "NOMAD_ADDR": self.address, "NOMAD_TOKEN": self.token},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode in codes, ended.stdout + ended.stderr
        return ended.stdout

    def until(self, path: str, true: Any, what: str, seconds: float = 90) -> Any:
        """What a path gives, once it is so; asked again and again, for nobody announces it."""
        deadline = time.monotonic() + seconds
        with self.http() as http:
            while True:
                answer = http.get(path)
                if answer.is_success and true(answer.json()):
                    return answer.json()
                if time.monotonic() > deadline:
                    told = f"last: {answer.text[:2000]}\n{self.outputs()}"
                    pytest.fail(f"not within {seconds:g} s: {what}; {told}")
                time.sleep(0.2)

    def outputs(self) -> str:
        """The end of what each task printed."""
        # There are pipes of the same names, but for a dot before them.
        files = sorted((self.folder / "data" / "alloc").glob("*/alloc/logs/[!.]*.std*.*"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in files)

    def secrets_of(self, allocation: str, task: str) -> Path:
        return self.folder / "data" / "alloc" / allocation / task / "secrets"


@contextlib.contextmanager
def agent() -> Iterator[Agent]:
    """Start one in dev mode, and make its first token."""
    if not shutil.which("nomad"):
        pytest.skip("no real Nomad: there is no `nomad` on PATH")
    # A short path: a task's API socket lies deep in it, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="nomad-"))
    http, rpc, serf = free_ports(3)
    text = AGENT.format(http=http, rpc=rpc, serf=serf, data=folder / "data")
    (folder / "agent.hcl").write_text(f"{text}\nacl {{ enabled = true }}\n")
    # An own certificate bundle for AWS makes the agent's start fail on machines that are none of AWS's.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    log = folder / "agent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["nomad", "agent", "-dev", "-config", folder / "agent.hcl"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "TMPDIR": str(folder)},
            start_new_session=True,
        )
    made = Agent(f"http://127.0.0.1:{http}", folder)
    try:
        made = Agent(made.address, folder, _first_token(made, process, log))
        made.until("/v1/nodes", lambda nodes: any(node["Status"] == "ready" for node in nodes), "a node")
        yield made
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _first_token(made: Agent, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    with made.http() as http:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):
                answer = http.post("/v1/acl/bootstrap")
                if answer.is_success:
                    return str(answer.json()["SecretID"])
            time.sleep(0.2)
    pytest.fail(f"no agent with ACLs:\n{log.read_text(errors='replace')[-2000:]}")
