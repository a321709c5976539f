"""What the runbook tells people to do exists (commands, settings, metrics, codes), and it works."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client import CollectorRegistry

from tests.observability.server import ROOT, RULES
from tests.observability.stage import KEYS, stage
from tests.observability.test_log_events import documented
from worker.cli import app
from worker.runtime.families import Families
from worker.runtime.labels import codes
from worker.settings.model import Settings

pytestmark = pytest.mark.anyio

RUNBOOKS = ROOT / "docs" / "runbook"
PAGES = sorted(RUNBOOKS.glob("*.md"))
DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ALERTS = set(re.findall(r"alert: (\w+)", RULES.read_text()))
SHELL = re.compile(r"^```shell\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
STARTED = re.compile(r"(?:^|[|;&(]\s*|bin/|exec worker )dispatch-worker((?: [^\n|;&)#]*)?)", re.MULTILINE)
METRIC = re.compile(r"'\^?((?:dispatch_worker|process)_[^'.\"]*)")
OTHERS = {"limits.http_max_conns_per_client"}
"""Names of two words that are Nomad's own."""

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("redis-cli", "curl", "jq", "bash"))), reason="redis-cli, curl or jq is missing"
)


def blocks(page: Path) -> list[str]:
    return SHELL.findall(page.read_text())


def commands(page: Path, *, inline: bool) -> Iterator[list[str]]:
    """Arguments of every `dispatch-worker` that a page names."""
    texts = [block.replace("\\\n", " ") for block in blocks(page)]
    if inline:
        texts += INLINE.findall(page.read_text())
    for text in texts:
        for arguments in STARTED.findall(text):
            yield shlex.split(arguments)


def understood(arguments: list[str]) -> str:
    """Let the real command line read the arguments without doing anything; returns what it does not know."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments:
        name, *arguments = arguments
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    unknown = [
        word.partition("=")[0]
        for word in arguments
        if re.match(r"--?[a-zA-Z]", word) and word.partition("=")[0] not in known
    ]
    return f"no option {unknown[0]}" if unknown else ""


def test_what_the_command_line_does_not_know_is_noticed() -> None:
    assert understood(["status"]) == ""
    assert understood(["dlq", "requeue", "--dry-run", "--reason", "x"]) == ""
    assert understood(["dlq", "resend", "1-0"]) == "no command resend"
    assert understood(["dlq", "drop", "--force"]) == "no option --force"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_that_a_page_names_exists(page: Path) -> None:
    assert [(one, understood(one)) for one in commands(page, inline=True) if understood(one)] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_every_command_in_the_documentation_exists(page: Path) -> None:
    assert [(one, understood(one)) for one in commands(page, inline=False) if understood(one)] == []


def test_the_pages_name_commands() -> None:
    named = {tuple(one[:1]) for page in PAGES for one in commands(page, inline=True)}

    assert {("status",), ("cancel",), ("dlq",), ("doctor",), ("healthcheck",)} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    named = {
        word.partition("=")[0]
        for word in INLINE.findall(page.read_text())
        if re.fullmatch(r"(WORKER|NOMAD|REDIS)_[A-Z_]+(=\S+)?", word)
    }

    assert named - settings == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_event_and_code_that_a_page_names_exists(page: Path) -> None:
    named = {word for word in INLINE.findall(page.read_text()) if re.fullmatch(r"[a-z_]+\.[a-z_]+", word)}

    assert named - set(documented()) - set(codes()) - OTHERS == set()


def expanded(pattern: str) -> Iterator[str]:
    """`a_(b|c)_d` is `a_b_d` and `a_c_d`."""
    parts = [part.split("|") for part in re.split(r"[()]", pattern)]
    yield from ("".join(chosen) for chosen in product(*parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_metric_that_a_page_looks_for_exists(page: Path) -> None:
    declared = {one.name for one in Families(CollectorRegistry()).declared}
    known = declared | {f"{name}_{part}" for name in declared for part in ("bucket", "count", "sum")}
    known |= {"process_start_time_seconds", "process_resident_memory_bytes"}
    looked_for = {name for pattern in METRIC.findall(page.read_text()) for name in expanded(pattern)}

    assert looked_for - known == set()


def test_the_pages_look_for_metrics() -> None:
    assert list(expanded("a_(b|c)_(d|e)")) == ["a_b_d", "a_b_e", "a_c_d", "a_c_e"]
    assert sum(len(METRIC.findall(page.read_text())) for page in PAGES) > 15


@needs_tools
async def test_every_command_of_the_runbook_works() -> None:
    pages = {page.stem: blocks(page) for page in PAGES if page.stem != "README"}
    failed = []

    async with stage() as world:
        settled = await world.load()
        (held, *_) = await world.hold(2)
        letters = [
            letter.decode()
            for letter, fields in await world.redis.xrange(KEYS.dead)
            if fields[b"dead_code"] == b"nomad.job_unknown"
        ]
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
        for page, found in pages.items():
            for block in found:
                # What is cancelled must still run; everything else is asked of a message that has ended.
                message = held if "cancel" in block else settled[1]
                variables = {**environment, "MESSAGE": message, "DEAD_LETTER": letters[0]}
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
