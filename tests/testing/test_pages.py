"""What the pages show for producers and for tests of one's own works, word for word but for addresses."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.testing import Stack, job

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SOON = 60.0
JOBS = [job("render", meta=["who"])]


def blocks(page: str, heading: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    section = text.split(f"\n{heading}\n", 1)[1] if heading else text
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return found


async def run(stack: Stack, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), **stack.environment}
    return await asyncio.to_thread(
        subprocess.run,
        command,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )


async def test_the_readmes_program_sends_and_waits(tmp_path: Path) -> None:
    program = blocks("README.md", "### Send", "python")[0]
    async with Stack(JOBS) as stack:
        program = program.replace("redis://localhost", stack.redis.url)

        ended = await run(stack, sys.executable, "-c", program, cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("succeeded 0 {")


async def test_the_readmes_lines_send_and_wait(tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("NOT RUN: no redis-cli on PATH")
    dispatch, xadd = blocks("README.md", "### Send", "shell")[0].splitlines()
    (tmp_path / "input.json").write_text("{}")
    async with Stack(JOBS) as stack, stack.client() as client:
        first = await run(stack, "sh", "-c", dispatch, cwd=tmp_path)
        line = xadd.replace("redis-cli", f"redis-cli -p {stack.redis.port}")
        second = await run(stack, "sh", "-c", line, cwd=tmp_path)
        final = await client.wait(await client.find("requests", second.stdout.strip()), SOON)

    assert "ended: succeeded" in first.stdout, first.stderr
    assert (final.verdict, final.correlation_id) == ("succeeded", "order-17")


async def test_the_producers_page_shows_a_program_that_runs(tmp_path: Path) -> None:
    body = textwrap.indent(blocks("docs/producers.md", "## From Python", "python")[0], "    ")
    program = f"import asyncio\nasync def main():\n{body}\nasyncio.run(main())"
    async with Stack(JOBS) as stack:
        program = program.replace("redis://localhost", stack.redis.url)

        ended = await run(stack, sys.executable, "-c", program, cwd=tmp_path)

    assert ended.stdout.startswith("succeeded 0 {"), ended.stderr


async def test_the_producers_page_shows_a_batch_that_can_be_sent(tmp_path: Path) -> None:
    (lines,) = blocks("docs/producers.md", "## From a shell", "json")
    (tmp_path / "batch.jsonl").write_text(textwrap.dedent(lines))
    (tmp_path / "clip.bin").write_bytes(b"\x00")
    async with Stack([*JOBS, job("encode")]) as stack:
        command = (sys.executable, "-m", "worker", "dispatch", "--batch", "batch.jsonl", "--wait")

        ended = await run(stack, *command, cwd=tmp_path)

    assert ended.stdout == "2 requests ended: 2 succeeded.\n", ended.stderr


@pytest.mark.parametrize("block", blocks("docs/testing.md", "", "python")[:2])
async def test_the_tests_that_the_testing_page_shows_pass(block: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(block, "docs/testing.md", "exec"), names)
    (test,) = (value for name, value in names.items() if name.startswith("test_"))

    await _called(test)


async def _called(test: Callable[[], Any]) -> None:
    if asyncio.iscoroutinefunction(test):
        await test()
    else:
        await asyncio.to_thread(test)
