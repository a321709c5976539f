"""The producer's commands, killed before and after every single thing they ask of Redis.

Each run dies one step later than the one before, until one comes through: all is then done, and done once.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from tests.adapters.redis.conftest import KEYS
from tests.deadletter.conftest import Morgue
from worker.testing import Stack, job

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

SOON = 60.0
LETTERS = 4
REQUESTS = 230
"""Three pipelines."""
MORTAL = """
import os, signal, sys
from worker.client import DispatchClient

left, before = int(sys.argv[1]), sys.argv[2] == "before"
ask = DispatchClient._run

async def asked(self, commands):
    global left
    left -= 1
    if before and not left:
        os.kill(os.getpid(), signal.SIGKILL)
    answers = await ask(self, commands)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return answers

DispatchClient._run = asked
from worker.cli import main
main(sys.argv[3:])
"""
"""Dies at the n-th exchange with Redis: before the command goes out, or once its effect is there, unheard."""


class Mortal:
    """Runs a command so often that it comes through."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {"PATH": os.environ["PATH"], **environment}

    async def runs(self, *words: str, check: Callable[[], Awaitable[None]]) -> int:
        """Returns how often it died; `check` looks at what each death left."""
        for death in range(1, 40):
            for moment in ("before", "after"):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", MORTAL, str(death), moment, *words),
                    env=self._environment,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                )
                async with asyncio.timeout(SOON):
                    _, error = await process.communicate()
                if process.returncode != -signal.SIGKILL:
                    assert process.returncode == 0, error.decode()
                    return 2 * death - (2 if moment == "before" else 1)
                await check()
        pytest.fail("it never came through")


@pytest.fixture
def mortal(morgue: Morgue) -> Mortal:
    return Mortal(morgue.environment)


async def fields_of(morgue: Morgue, name: bytes) -> Counter[bytes]:
    return Counter(fields[name] for fields in await morgue.requests() if name in fields)


@pytest.mark.parametrize("edits", [(), ("-meta", "tenant=acme")])
async def test_a_requeue(morgue: Morgue, mortal: Mortal, edits: tuple[str, ...]) -> None:
    keys = [str(await morgue.dies(meta=b'{"a":"1"}')).encode() for _ in range(LETTERS)]

    async def nothing_lost_or_doubled() -> None:
        replays = await fields_of(morgue, b"replay_of")
        assert set(replays.values()) <= {1}
        assert replays.total() + await morgue.letters.count() == LETTERS

    deaths = await mortal.runs("dlq", "requeue", "--all", *edits, check=nothing_lost_or_doubled)

    assert deaths > 2 * LETTERS
    assert await morgue.letters.count() == 0
    assert await fields_of(morgue, b"replay_of") == Counter(keys)


async def test_a_drop(morgue: Morgue, mortal: Mortal) -> None:
    for tenant in ["test"] * LETTERS + ["kept"]:
        await morgue.dies(tenant=tenant)

    async def only_drops() -> None:
        assert 1 <= await morgue.letters.count() <= LETTERS + 1
        assert not await fields_of(morgue, b"replay_of")

    deaths = await mortal.runs("dlq", "drop", "--tenant", "test", "--yes", check=only_drops)

    assert deaths > LETTERS
    assert [letter.tenant async for letter in morgue.letters.find()] == ["kept"]


async def test_a_batch(morgue: Morgue, mortal: Mortal, tmp_path: Path) -> None:
    lines = [json.dumps({"job": "render", "correlation_id": f"c{n}"}) for n in range(REQUESTS)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    words = ("dispatch", "--batch", str(tmp_path / "b.jsonl"), "-idempotency-token", "t")

    async def no_double() -> None:
        assert set((await fields_of(morgue, b"correlation_id")).values()) <= {1}

    deaths = await mortal.runs(*words, check=no_double)

    assert deaths >= 6
    assert await fields_of(morgue, b"correlation_id") == Counter(f"c{n}".encode() for n in range(REQUESTS))


async def test_a_payload_kept_elsewhere_is_there_when_its_request_is(
    morgue: Morgue, mortal: Mortal, tmp_path: Path
) -> None:
    (tmp_path / "p").write_bytes(bytes(20_000))
    line = {"job": "fetch", "payload_file": str(tmp_path / "p")}
    (tmp_path / "b.jsonl").write_text(json.dumps(line))
    words = ("dispatch", "--claim-check", "--batch", str(tmp_path / "b.jsonl"), "-idempotency-token", "t")

    async def never_a_request_without_its_payload() -> None:
        for meta in await fields_of(morgue, b"meta"):
            reference = json.loads(meta)["dispatch_payload_ref"]
            assert await morgue.bench.redis.strlen(reference) == 20_000

    await mortal.runs(*words, check=never_a_request_without_its_payload)

    assert (await fields_of(morgue, b"meta")).total() == 1
    await never_a_request_without_its_payload()


async def test_a_cancellation(morgue: Morgue, mortal: Mortal) -> None:
    sent = await morgue.client.send(job="render")

    async def at_most_one_order() -> None:
        assert await morgue.bench.redis.zcard(KEYS.cancels) <= 1

    deaths = await mortal.runs("cancel", f"requests:{sent.id}", check=at_most_one_order)

    assert deaths >= 2
    assert await morgue.bench.redis.zrange(KEYS.cancels, 0, -1) == [KEYS.message(sent.key).encode()]


async def test_a_dispatch_that_is_waited_for_is_one_job_whatever_dies() -> None:
    async with Stack([job("render")]) as stack, stack.client() as client:

        async def at_most_one_job() -> None:
            assert set(stack.dispatched().values()) <= {1}
            assert len(stack.dispatched()) <= 1

        words = ("dispatch", "--wait", "-idempotency-token", "order-17", "render")
        deaths = await Mortal(stack.environment).runs(*words, check=at_most_one_job)

        ((message_id, jobs),) = stack.dispatched().items()
        final = await client.result("requests", message_id)

    assert deaths >= 3
    assert (jobs, final.verdict if final else None) == (1, "succeeded")
