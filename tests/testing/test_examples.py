"""The examples that need nothing but this project run as their page says."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker.testing import Stack, job

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "python": (sys.executable, "python/dispatch.py"),
    "redis-cli": ("sh", "redis-cli/dispatch.sh"),
}


@pytest.mark.parametrize("language", COMMANDS)
async def test_an_example_waits_for_the_end_and_exits_with_the_tasks_code(language: str) -> None:
    if language == "redis-cli" and shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    program, file = COMMANDS[language]
    async with Stack([job("good", meta=["who"]), job("bad", exit_code=7, meta=["who"])]) as stack:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parent), **stack.environment}
        ended = [
            await asyncio.to_thread(
                subprocess.run,
                [program, str(EXAMPLES / file), name],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            for name in ("good", "bad")
        ]

    assert [one.returncode for one in ended] == [0, 7], [one.stderr for one in ended]
    assert "succeeded 0" in ended[0].stdout
    assert "failed 7" in ended[1].stdout
