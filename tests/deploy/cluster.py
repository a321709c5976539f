"""A Kubernetes API: a real kube-apiserver on an etcd, without controllers, so that no Pod ever runs.

Knows nothing of the chart.
"""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.chart import ROOT, TOOLS, run, tool

TOKEN = "the-token-of-the-administrator"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
DEFINITIONS = ROOT / ".tools" / "crds"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


@dataclass(frozen=True)
class Cluster:
    """The API, with an administrator's rights."""

    config: Path
    http: httpx.Client

    def helm(self, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
        return run(tool(TOOLS / "helm"), "--kubeconfig", self.config, *arguments, given=given)

    def create(self, path: str, made: Any, *, dry_run: bool = False) -> httpx.Response:
        return self.http.post(path, json=made, params={"dryRun": "All", **STRICT} if dry_run else STRICT)

    def apply(self, path: str, text: str) -> None:
        """Server-side, as one applies definitions that are too long for `kubectl apply`."""
        answer = self.http.patch(
            path,
            content=text,
            params={"fieldManager": "tests", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert answer.is_success, answer.text

    def names(self, path: str) -> list[str]:
        answer = self.http.get(path)
        assert answer.is_success, answer.text
        return sorted(item["metadata"]["name"] for item in answer.json()["items"])

    def namespace(self, name: str) -> str:
        """One in which the restricted Pod Security Standard is enforced."""
        made = {"metadata": {"name": name, "labels": RESTRICTED}}
        assert self.create("/api/v1/namespaces", made).is_success
        # No controller makes it here.
        account = {"metadata": {"name": "default"}}
        assert self.create(f"/api/v1/namespaces/{name}/serviceaccounts", account).is_success
        return name


STRICT = {"fieldValidation": "Strict"}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _started(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, cwd=log.parent)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _keys(folder: Path) -> None:
    for command in (
        ("openssl", "genrsa", "-out", folder / "accounts.key", "2048"),
        ("openssl", "rsa", "-in", folder / "accounts.key", "-pubout", "-out", folder / "accounts.pub"),
    ):
        made = run(*command)
        assert made.returncode == 0, made.stderr


def _kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    user, context = {"token": TOKEN}, {"cluster": "tests", "user": "tests"}
    server = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority": str(folder / "certificates" / "apiserver.crt"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": server}],
        "users": [{"name": "tests", "user": user}],
        "contexts": [{"name": "tests", "context": context}],
        "current-context": "tests",
    }
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start both, with the definitions of the Prometheus Operator and of KEDA."""
    server = tool(TOOLS / "kube-apiserver")
    etcd = shutil.which("etcd")
    if etcd is None:
        pytest.fail("etcd is not installed (Debian: etcd-server)")
    client, peer, port = _free_ports(3)
    _keys(folder)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            _started(
                folder / "etcd.log",
                etcd,
                *("--data-dir", folder / "etcd", "--listen-client-urls", f"http://127.0.0.1:{client}"),
                *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
                *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            )
        )
        process = stack.enter_context(
            _started(
                folder / "kube-apiserver.log",
                server,
                f"--etcd-servers=http://127.0.0.1:{client}",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={folder / 'certificates'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={folder / 'accounts.pub'}",
                f"--service-account-signing-key-file={folder / 'accounts.key'}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
            )
        )
        http = stack.enter_context(
            httpx.Client(
                base_url=f"https://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {TOKEN}"},
                # Its certificate is its own, made while it starts.
                verify=False,
                timeout=30,
            )
        )
        _wait_until(lambda: _answers(http, process), "kube-apiserver is ready")
        made = Cluster(_kubeconfig(folder, port), http)
        _define(made)
        yield made


def _answers(http: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        pytest.fail(f"kube-apiserver ended with {process.returncode}")
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _define(made: Cluster) -> None:
    files = sorted(DEFINITIONS.glob("*.yaml"))
    assert len(files) == 4, "the custom resources' definitions are missing: run `make test-kube`"
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = []
    for file in files:
        text = file.read_text()
        names.append(yaml.safe_load(text)["metadata"]["name"])
        made.apply(f"{path}/{names[-1]}", text)

    def established() -> bool:
        conditions = [
            condition["type"]
            for name in names
            for condition in made.http.get(f"{path}/{name}").json().get("status", {}).get("conditions", [])
            if condition["status"] == "True"
        ]
        return conditions.count("Established") == len(names)

    _wait_until(established, "the custom resources are served")


def _wait_until(true: Any, what: str) -> None:
    """Ask every 200 ms: a process that starts tells nobody."""
    deadline = time.monotonic() + START_SECONDS
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {START_SECONDS:g} s: {what}")
        time.sleep(0.2)
