"""A failover by Sentinel in the middle of sending and following: nothing is lost, nothing doubles."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client.stage import KEYS, Stage
from tests.processes.fleet import until
from worker.adapters.redis.connection import FAILURES, Purpose, connect
from worker.client import DispatchClient, RedisOptions, Reply, Sent, SyncDispatchClient, Verdict
from worker.dev.embedded_redis import EmbeddedRedis, find_redis_server
from worker.dev.processes import start_child

pytestmark = pytest.mark.anyio

SOON = 60.0
BEFORE, AFTER = 40, 40
SENTINEL = """
port {port}
dir {folder}
sentinel monitor main 127.0.0.1 {primary} 1
sentinel down-after-milliseconds main 500
sentinel failover-timeout main 5000
"""


@dataclass(frozen=True)
class Group:
    """A primary with a replica, watched by one sentinel."""

    primary: EmbeddedRedis
    replica: EmbeddedRedis
    options: RedisOptions

    async def in_step(self) -> None:
        """Wait until the replica has all that the primary acknowledged."""
        admin: Any = connect(RedisOptions(self.primary.url), Purpose.OPS)
        try:
            await admin.set("step", "1")

            async def acknowledged() -> bool:
                return bool(await admin.execute_command("WAIT", 1, 1000))

            await until(acknowledged, SOON, "the replica has everything")
        finally:
            await admin.aclose()

    async def promoted(self) -> Any:
        """Wait until the replica is the primary; returns a client of it."""
        admin: Any = connect(RedisOptions(self.replica.url), Purpose.OPS)

        async def is_primary() -> bool:
            return bool((await admin.info("replication"))["role"] == "master")

        await until(is_primary, SOON, "the replica is promoted")
        return admin


async def _known(sentinel: Any) -> None:
    """Wait until the sentinel has found the replica: it could promote none before."""

    async def found() -> bool:
        try:
            return bool(await sentinel.execute_command("SENTINEL", "REPLICAS", "main"))
        except FAILURES:
            return False  # it is starting

    await until(found, SOON, "the sentinel knows the replica")


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    async with EmbeddedRedis() as primary, EmbeddedRedis() as spare:
        # Its port is free again, and below those that the kernel gives to outgoing connections.
        port = spare.port
        await spare.stop()
        async with EmbeddedRedis(args=("--replicaof", "127.0.0.1", str(primary.port))) as replica:
            config = tmp_path / "sentinel.conf"
            config.write_text(SENTINEL.format(port=port, folder=tmp_path, primary=primary.port))
            child = start_child([str(find_redis_server()), str(config), "--sentinel"], env={}, cwd=tmp_path)
            sentinel: Any = connect(RedisOptions(f"redis://127.0.0.1:{port}"), Purpose.OPS)
            try:
                await _known(sentinel)
                url = f"redis+sentinel://127.0.0.1:{port}/main/0"
                yield Group(primary, replica, RedisOptions(url))
            finally:
                await sentinel.aclose()
                await child.stop(timeout_seconds=SOON)


async def test_sending_and_following_survive_a_failover(group: Group) -> None:
    async with DispatchClient(group.options) as client:
        early = [await client.send(job="a", correlation_id=f"c{n}") for n in range(BEFORE)]
        following = asyncio.create_task(_collect(client, early[0]))
        await Stage(group.primary, admin := await _admin(group.primary)).readers(1)
        await group.in_step()
        await admin.aclose()

        await group.primary.kill()
        late = [
            await client.send(job="a", correlation_id=f"c{BEFORE + n}", timeout=SOON) for n in range(AFTER)
        ]
        admin = await group.promoted()
        stage = Stage(group.replica, admin)
        await stage.publish(early[0], "dispatched", 1)
        for sent in (*early, *late):
            await stage.publish(sent, "result", 2, verdict=Verdict.SUCCEEDED)
        finals = await asyncio.gather(*(client.wait(sent, SOON) for sent in (*early, *late)))
        replies = await following
        names = Counter(fields[b"correlation_id"].decode() for fields in await stage.requests())
        await admin.aclose()

    assert [(reply.type, reply.seq) for reply in replies] == [("dispatched", 1), ("result", 2)]
    assert [final.id for final in finals] == [sent.id for sent in (*early, *late)]
    assert names == Counter(f"c{n}" for n in range(BEFORE + AFTER))


async def test_the_synchronous_client_survives_one_too(group: Group) -> None:
    with SyncDispatchClient(group.options) as client:
        early = await asyncio.to_thread(client.send, job="a")
        await group.in_step()

        await group.primary.kill()
        late = await asyncio.to_thread(client.send, job="b", timeout=SOON)
        admin = await group.promoted()
        stage = Stage(group.replica, admin)
        for sent in (early, late):
            await stage.publish(sent, "result", 1, verdict=Verdict.SUCCEEDED)
        finals = [await asyncio.to_thread(client.wait, sent, SOON) for sent in (early, late)]
        jobs = [fields[b"job"] for fields in await stage.requests()]
        await admin.aclose()

    assert [final.id for final in finals] == [early.id, late.id]
    assert jobs == [b"a", b"b"]
    assert KEYS.replies == early.reply_stream


async def _collect(client: DispatchClient, sent: Sent) -> list[Reply]:
    async with asyncio.timeout(SOON):
        return [reply async for reply in client.events(sent)]


async def _admin(server: EmbeddedRedis) -> Any:
    return connect(RedisOptions(server.url), Purpose.OPS)
