"""What `docs/producers.md` lets a producer do in Redis is enough, and all of it is needed."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.stage import KEYS, WAIT_SECONDS, Stage
from worker.client import (
    Cancelled,
    DispatchClient,
    RedisClaims,
    RedisOptions,
    SyncDispatchClient,
    Verdict,
)
from worker.deadletter import DeadLetters
from worker.errors import RedisDenied

pytestmark = pytest.mark.anyio

SECTION = (
    (Path(__file__).parents[2] / "docs" / "producers.md").read_text().split("### What a producer may do")[1]
)
RULES = SECTION.split("```")[1].split()[2:]
DLQ, STATUS = (re.findall(r"`(\+[^`]+)`", SECTION.split("```")[2])[place].split() for place in (0, 1))
LATER = {"+ping", "+hget"}
"""Asked for by a connection that was idle, and by a wait that lasts."""


async def producer(stage: Stage, *more: str) -> RedisOptions:
    await stage.admin.execute_command("ACL", "SETUSER", *RULES, *more)
    url = stage.options.url.replace("redis://", "redis://producer:PASSWORD@")
    return RedisOptions(url)


async def whole_story(stage: Stage, options: RedisOptions) -> None:
    async with DispatchClient(options, claims=RedisClaims(), poll_seconds=0.05) as client:
        sent = await client.send(job="a", payload=bytes(20_000), idempotency_key="k")
        again = await client.send(job="a", payload=bytes(20_000), idempotency_key="k")
        await stage.remember(sent, "running")
        answer = await client.cancel(sent.stream, sent.id)
        found = await client.find(sent.stream, sent.id)
        await stage.publish(sent, "result", 1, verdict=Verdict.SUCCEEDED)
        final = await client.wait(found, WAIT_SECONDS)
        await client.result(sent.stream, sent.id)
        await client.recall(sent.stream, sent.id)
    assert (again.id, answer, final.verdict) == (sent.id, Cancelled.ORDERED, Verdict.SUCCEEDED)

    def without_asyncio() -> str:
        with SyncDispatchClient(options) as client:
            return client.send(job="b").id

    assert await asyncio.to_thread(without_asyncio)


async def test_a_producer_with_the_documented_rights_can_do_its_work(stage: Stage) -> None:
    await whole_story(stage, await producer(stage))


async def test_dead_letters_and_the_overview_need_the_rights_told(stage: Stage) -> None:
    options = await producer(stage, *DLQ, *STATUS)
    fields = {"dead_stream": "requests", "dead_id": "1-0", "job": "a"}
    await stage.admin.xadd(KEYS.dead, fields)
    async with DispatchClient(options) as client:
        letters = DeadLetters(client)
        [letter] = [letter async for letter in letters.find()]
        assert await letters.count() == 1
        await letters.requeue(letter)
        assert not await letters.drop(letter.id)

    await stage.admin.execute_command("XGROUP", "CREATE", KEYS.stream("requests"), "workers", "0", "MKSTREAM")
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "worker", "status"],
        env={"PATH": os.environ["PATH"], "REDIS_URL": options.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("right", [rule for rule in RULES if rule[0] == "+" and rule not in LATER])
async def test_without_one_of_them_it_is_told(stage: Stage, right: str) -> None:
    options = await producer(stage, f"-{right[1:]}")

    with pytest.raises(RedisDenied):
        await whole_story(stage, options)
