"""Alerts fire when they must; each has a page whose commands were run on a worker under load."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observability.server import ROOT, RULES
from tests.observability.stage import KEYS, stage

pytestmark = pytest.mark.anyio

FOLDER = RULES.parent
RUNBOOKS = ROOT / "docs" / "runbook"
ALERTS = sorted(set(re.findall(r"alert: (\w+)", RULES.read_text())))
CASES = (FOLDER / "rules_test.yaml").read_text() + (FOLDER / "objective_test.yaml").read_text()
SHELL = re.compile(r"^```shell\n(.*?)^```", re.DOTALL | re.MULTILINE)

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("redis-cli", "curl", "jq", "bash"))), reason="redis-cli, curl or jq is missing"
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


@needs_promtool
def test_prometheus_reads_the_rules() -> None:
    checked = promtool("check", "config", FOLDER / "prometheus.yaml")

    assert (checked.returncode, checked.stderr) == (0, "")


@needs_promtool
@pytest.mark.parametrize("name", ["rules_test.yaml", "objective_test.yaml"])
def test_alerts_fire_when_they_must_and_are_silent_otherwise(name: str) -> None:
    tested = promtool("test", "rules", FOLDER / name)

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_a_tested_case_and_a_page(alert: str) -> None:
    rules = re.findall(rf"- alert: {alert}\n(.*?)(?=\n      - |\n\n|\Z)", RULES.read_text(), re.DOTALL)

    for rule in rules:
        assert re.search(r"severity: (critical|warning)\b", rule)
        assert f"runbook_url: docs/runbook/{alert}.md" in rule or "annotations: *slow" in rule
    assert f'alertname="{alert}"' in CASES
    headings = re.findall(r"^#+ (.*)$", (RUNBOOKS / f"{alert}.md").read_text(), re.MULTILINE)
    assert headings == [alert, "Cause", "Check", "Cure"]


def test_every_case_that_fires_stands_next_to_one_that_does_not() -> None:
    assert CASES.count("exp_samples: []") >= len(ALERTS)


def test_every_page_belongs_to_an_alert_and_is_listed() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    listed = set(re.findall(r"\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text()))

    assert pages == listed == set(ALERTS)


@needs_tools
async def test_every_command_of_the_runbook_works() -> None:
    pages = {path.stem: SHELL.findall(path.read_text()) for path in sorted(RUNBOOKS.glob("Dispatch*.md"))}
    failed = []

    async with stage() as world:
        settled = await world.load()
        (held, *_) = await world.hold(2)
        letters = await world.redis.xrange(KEYS.dead)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "WORKER": world.stack.http_address,
            "WORKER_HTTP_ADDR": world.stack.http_address.removeprefix("http://"),
            "REDIS_URL": world.stack.redis.url,
            "NOMAD_ADDR": world.stack.nomad.address,
            "NOMAD_TOKEN": "",
            "JOB": "demo-render",
        }
        for page, blocks in pages.items():
            for block in blocks:
                # What is cancelled must still run; everything else is asked of a message that has ended.
                message = held if "cancel" in block else settled[1]
                variables = {**environment, "MESSAGE": message, "DEAD_LETTER": letters[0][0].decode()}
                ended = await asyncio.to_thread(_run, block, variables)
                if ended.returncode != 0 or not (ended.stdout or ended.stderr or "gc" in block):
                    failed.append((page, block, ended.returncode, ended.stdout[-300:], ended.stderr[-300:]))

    assert len(pages) == len(ALERTS)
    assert failed == []


def _run(block: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # Without pipefail: `head` and `grep -o` end a pipe on purpose.
    return subprocess.run(
        ["bash", "-eu", "-c", block], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
