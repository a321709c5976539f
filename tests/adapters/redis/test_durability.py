"""Asking Redis whether a write is durable: what counts as yes, and what a server without replicas answers."""

from typing import Any

import pytest
from msgspec.structs import replace

from tests.adapters.redis.conftest import KEYS, Bench
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.adapters.redis.durability import Durability, require
from worker.adapters.redis.scripts import Script, ScriptRunner, pack
from worker.core.lifecycle import StopOrdered
from worker.core.model import Phase, Verdict
from worker.errors import RedisDenied, RedisUnconfirmed, RedisUnsuitable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("answer", "confirmed"),
    [
        (1, True),
        (2, True),
        (0, False),
        ([1, 0], True),  # WAITAOF: on the primary's disk, on no replica's
        ([0, 1], False),
        ([], False),
        (None, False),
        (RuntimeError("what Redis refused"), False),
    ],
)
def test_a_number_counts_and_nothing_else(answer: Any, confirmed: bool) -> None:  # noqa: FBT001
    assert Durability.confirms(answer) is confirmed


async def test_what_no_replica_has_is_written_and_not_confirmed(bench: Bench) -> None:
    runner = ScriptRunner(bench.redis, Durability.REPLICA)
    keys = [KEYS.workers, KEYS.worker("a")]

    answer, confirmed = await runner.run_confirmed(Script.BEAT, keys, ["a", 60_000, pack(["version", "1"])])
    await runner.close()

    assert not confirmed
    assert int(answer) > 0
    assert await bench.redis.zscore(KEYS.workers, "a") is not None


async def test_without_a_durability_nothing_is_asked(bench: Bench) -> None:
    runner = ScriptRunner(bench.redis)

    _, confirmed = await runner.run_confirmed(
        Script.BEAT, [KEYS.workers, KEYS.worker("a")], ["a", 60_000, pack(["version", "1"])]
    )
    await runner.close()

    assert confirmed
    assert "cmdstat_wait" not in await bench.redis.info("commandstats")


async def test_a_server_is_asked_at_start_what_it_can_confirm(bench: Bench) -> None:
    await require(bench.redis, Durability.NONE)
    await require(bench.redis, Durability.REPLICA)

    # Before 7.2 it does not know the command; after that it writes no append-only file here.
    with pytest.raises(RedisUnsuitable, match="WORKER_DURABILITY=aof needs"):
        await require(bench.redis, Durability.AOF)


async def test_a_user_who_may_not_ask_is_told_at_start(bench: Bench) -> None:
    await bench.redis.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-wait")
    narrow = connect(RedisOptions(bench.url.replace("redis://", "redis://narrow:secret@")), Purpose.OPS)

    try:
        with pytest.raises(RedisDenied):
            await require(narrow, Durability.REPLICA)
    finally:
        await narrow.aclose()


async def test_an_order_to_stop_counts_only_once_it_is_confirmed_repeats_included(bench: Bench) -> None:
    worker = await bench.worker("a", durability=Durability.REPLICA)
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None
    await bench.redis.hset(KEYS.message(key), mapping={"state": "running", "child": "render/dispatch-1"})
    running = replace(record, phase=Phase.RUNNING, job_id="render/dispatch-1")

    for _ in range(3):
        with pytest.raises(RedisUnconfirmed, match="stop the job of"):
            await worker.ledger.keep(running, StopOrdered(Verdict.TIMED_OUT, 0))
