"""A real Nomad agent in a process of its own, for the tests and benchmarks that want one.

Knows nothing of what is asked of it. Nomad is not part of this project: it is used where there is one.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 60.0
STOP_SECONDS = 15.0

CLIENT_OPTIONS = """
    # Fingerprints that ask the network, or that a loopback agent has no use for.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,cni,vault,consul,bridge"
"""
DEV = """
bind_addr = "127.0.0.1"
ports {{ http = {http}  rpc = {rpc}  serf = {serf} }}
data_dir  = "{data}"
client {{
  options = {{{client_options}  }}
}}
plugin "raw_exec" {{ config {{ enabled = true }} }}
"""


@dataclass
class Agent:
    """One `nomad agent` process; it may be ended, and started again on the same data."""

    program: str
    folder: Path
    config: str
    address: str
    name: str = "agent"
    arguments: Sequence[str] = ("-dev",)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start it; it is not ready yet."""
        config = self.folder / f"{self.name}.hcl"
        config.write_text(self.config)
        # An own certificate bundle for AWS makes the agent's start fail on machines that are none of AWS's.
        environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        environment["TMPDIR"] = str(self.folder)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [self.program, "agent", *self.arguments, "-config", str(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait for a node that takes jobs; asked again and again, for nobody announces it."""
        deadline = time.monotonic() + START_SECONDS
        while self.runs() and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.address}/v1/nodes", timeout=2) as response:
                    if b'"Status":"ready"' in response.read():
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        pytest.fail(f"`nomad agent` did not become ready:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2_000:]

    def kill(self) -> None:
        """End it at once; its tasks go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None

    def stop(self) -> None:
        """End it as it wishes to be ended, or at once where it does not end."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def agent_folder() -> Iterator[Path]:
    """A folder for agents' data, gone afterwards with all they left there."""
    # A short path: a task's API socket lies deep in it, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="nomad-"))
    try:
        yield folder
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def dev_agent(program: str, *, config: str = "", ready: bool = True) -> Iterator[Agent]:
    """An agent in dev mode: server and client in one.

    Args:
        program: the `nomad` to start.
        config: more of it.
        ready: wait until it takes jobs; not possible with ACLs, before there is a token.
    """
    with agent_folder() as folder:
        http, rpc, serf = free_ports(3)
        text = DEV.format(http=http, rpc=rpc, serf=serf, data=folder / "data", client_options=CLIENT_OPTIONS)
        agent = Agent(program, folder, f"{text}\n{config}\n", f"http://127.0.0.1:{http}")
        agent.start()
        try:
            if ready:
                agent.wait_until_ready()
            yield agent
        finally:
            agent.stop()


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody had a moment ago."""
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for one in with_sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()


def _unmount_below(folder: Path) -> None:
    """Let go of the task directories in memory that an agent run by root leaves when it ends."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    points = [line.split()[1] for line in mounts.read_text().splitlines()]
    if below := [point for point in points if point.startswith(f"{folder}/")]:
        subprocess.run(["umount", *below], check=False, timeout=STOP_SECONDS)
