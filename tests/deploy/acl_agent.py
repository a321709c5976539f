"""A real Nomad agent with its ACLs on, for what only it can judge.

Knows nothing of the worker.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import nomad_agent
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
    program = shutil.which("nomad")
    if not program:
        pytest.skip("no real Nomad: there is no `nomad` on PATH")
    with nomad_agent.dev_agent(program, config="acl { enabled = true }", ready=False) as started:
        made = Agent(started.address, started.folder)
        made = Agent(made.address, made.folder, _first_token(made, started))
        made.until("/v1/nodes", lambda nodes: any(node["Status"] == "ready" for node in nodes), "a node")
        yield made


def _first_token(made: Agent, started: nomad_agent.Agent) -> str:
    deadline = time.monotonic() + START_SECONDS
    with made.http() as http:
        while started.runs() and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):
                answer = http.post("/v1/acl/bootstrap")
                if answer.is_success:
                    return str(answer.json()["SecretID"])
            time.sleep(0.2)
    pytest.fail(f"no agent with ACLs:\n{started.last_words()}")
