"""What `make sbom` left: a wheel that runs in an environment of its own, and the list of its parts."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.deploy.chart import ROOT, run, tool
from worker import __version__

LOCK = ROOT / "requirements" / "runtime.lock"
ELSEWHERE = {"async-timeout", "colorama"}
"""Locked for other systems or Pythons only."""


@pytest.fixture
def command() -> str:
    """The command in an environment that holds the wheel, its locked dependencies and nothing else."""
    return tool(ROOT / ".tools" / "runtime" / "bin" / "dispatch-worker")


@pytest.mark.deploy
def test_the_wheel_knows_its_commands(command: str) -> None:
    ended = run(command, "--help")

    assert ended.returncode == 0, ended.stderr
    for name in ("run", "dev", "dispatch", "wait", "cancel", "status", "dlq", "doctor", "healthcheck"):
        assert re.search(rf"\b{name}\b", ended.stdout), name


@pytest.mark.deploy
def test_the_wheel_runs_the_demo(command: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [command, "dev", "--demo", "5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.deploy
def test_the_source_distribution_holds_what_a_build_and_a_test_need() -> None:
    path = Path(tool(ROOT / "dist" / f"nomad_dispatch_worker-{__version__}.tar.gz"))
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "Makefile", "LICENSE", "CHANGELOG.md", "worker/__init__.py"} <= names
    assert {"requirements/dev.lock", "deploy/helm/dispatch-worker/Chart.yaml"} <= names
    assert [name for name in names if ".tools" in name or "__pycache__" in name] == []


@pytest.mark.deploy
def test_the_bill_of_materials_holds_every_locked_package() -> None:
    bill = json.loads(Path(tool(ROOT / "dist" / "sbom.cdx.json")).read_text())
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))

    held = {one["name"].lower().replace("_", "-"): one for one in bill["components"]}

    shipped = {name: version for name, version in locked.items() if name not in ELSEWHERE}
    assert {name: one["version"] for name, one in held.items()} == {
        **shipped,
        "nomad-dispatch-worker": __version__,
    }
    # One package tells its in words that the tool does not read; docs/licences.md has them all.
    assert {name for name, one in held.items() if not one.get("licenses")} <= {"protobuf"}


def test_every_locked_package_has_a_licence_that_is_taken(tmp_path: Path) -> None:
    made = tmp_path / "licences.md"

    ended = run(sys.executable, ROOT / "deploy" / "licences.py", made)

    assert ended.returncode == 0, ended.stderr
    assert made.read_text() == (ROOT / "docs" / "licences.md").read_text(), "run `make docs`"
