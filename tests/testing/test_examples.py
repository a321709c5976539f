"""The examples run as their page says, in every language whose tools are there."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.testing import Stack, job

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"
SOON = 60.0
TOOLS_SECONDS = 180.0
"""For fetching libraries and compiling."""


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NOT RUN: the example needs `{name}`, which is not on PATH")
    return path


def prepare(command: list[str], folder: Path) -> None:
    """Fetch libraries, or skip where the network does not let us."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TOOLS_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"NOT RUN: `{' '.join(command)}` took more than {TOOLS_SECONDS:g} s")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT RUN: `{' '.join(command)}` failed: {error.stderr.strip()[-300:]}")


def python(_: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "dispatch.py")]


def redis_cli(_: Path) -> list[str]:
    tool("redis-cli")
    return ["sh", str(EXAMPLES / "redis-cli" / "dispatch.sh")]


def go(folder: Path) -> list[str]:
    command = tool("go")
    prepare([command, "mod", "download"], EXAMPLES / "go")
    program = folder / "dispatch"
    subprocess.run(
        [command, "build", "-o", str(program), "."], cwd=EXAMPLES / "go", check=True, timeout=TOOLS_SECONDS
    )
    return [str(program)]


def typescript(folder: Path) -> list[str]:
    npm, node = tool("npm"), tool("node")
    here = folder / "typescript"
    shutil.copytree(EXAMPLES / "typescript", here, ignore=shutil.ignore_patterns("node_modules", "dist"))
    prepare([npm, "ci"], here)
    subprocess.run([npm, "run", "--silent", "build"], cwd=here, check=True, timeout=TOOLS_SECONDS)
    return [node, str(here / "dist" / "main.js")]


@pytest.mark.parametrize("language", [python, redis_cli, go, typescript])
async def test_an_example_waits_for_the_end_and_exits_with_the_tasks_code(
    language: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    command = await asyncio.to_thread(language, tmp_path)
    async with Stack([job("good", meta=["who"]), job("bad", exit_code=7, meta=["who"])]) as stack:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parent), **stack.environment}
        ended = [
            await asyncio.to_thread(
                subprocess.run,
                [*command, name],
                env=environment,
                capture_output=True,
                text=True,
                timeout=SOON,
                check=False,
            )
            for name in ("good", "bad")
        ]

    assert [one.returncode for one in ended] == [0, 7], [one.stderr for one in ended]
    assert "succeeded 0" in ended[0].stdout
    assert "failed 7" in ended[1].stdout
