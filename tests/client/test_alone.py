"""The client in a process that has redis and msgspec and nothing else of what the worker needs."""

import asyncio
import sys

import pytest

from tests.client.stage import KEYS, WAIT_SECONDS, Stage
from worker.client import Sent, Verdict

pytestmark = pytest.mark.anyio

PROGRAM = """
import sys

ALLOWED = {"worker", "redis", "msgspec", "hiredis", *sys.stdlib_module_names}

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Refusing())

import asyncio
from worker.client import DispatchClient, RedisClaims, RedisOptions, SyncDispatchClient

options = RedisOptions(sys.argv[1])
with SyncDispatchClient(options, claims=RedisClaims()) as client:
    sent = client.send(job="a", payload=bytes(20_000), idempotency_key="k")
    print(sent.id, flush=True)
    print(client.wait(sent, timeout=60).verdict, flush=True)

async def main():
    async with DispatchClient(options) as client:
        print((await client.wait(await client.find("requests", sent.id), timeout=60)).exit_code)
        print((await client.cancel("requests", sent.id)).value)

asyncio.run(main())
"""


async def test_it_sends_follows_and_cancels_with_redis_and_msgspec_alone(stage: Stage) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, stage.options.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        message_id = (await process.stdout.readline()).decode().strip()
        assert message_id, (await process.communicate())[1].decode()
        sent = Sent("requests", message_id, KEYS.replies, "0-0")
        await stage.publish(sent, "result", 1, verdict=Verdict.FAILED, exit_code=3)
        out, error = await process.communicate()

    assert out.decode().split() == ["failed", "3", "prevented"], error.decode()
    assert error == b""
