"""The rehearsal at start: it leaves nothing behind, and finds a missing right before the night does."""

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.adapters.redis.selftest import inspect, rehearse
from worker.errors import RedisDenied
from worker.runtime.clock import SystemClock

pytestmark = pytest.mark.anyio


async def test_the_rehearsal_passes_and_leaves_only_what_expires(bench: Bench) -> None:
    await rehearse(bench.redis, KEYS, SystemClock())

    for key in await bench.redis.keys("*"):
        assert await bench.redis.pttl(key) > 0


@pytest.mark.parametrize("withheld", ["xclaim", "xtrim", "hdel", "pexpire", "zrem"])
async def test_a_missing_right_is_found_at_start(bench: Bench, withheld: str) -> None:
    await bench.redis.execute_command(
        *("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", f"-{withheld}")
    )
    url = bench.url.replace("redis://", "redis://narrow:secret@")
    narrow = connect(RedisOptions(url=url), Purpose.OPS)

    try:
        with pytest.raises(RedisDenied, match=withheld.upper()):
            await rehearse(narrow, KEYS, SystemClock())
    finally:
        await narrow.aclose()


async def test_a_server_that_may_evict_is_warned_about(bench: Bench) -> None:
    await bench.redis.config_set("maxmemory", "100mb")
    await bench.redis.config_set("maxmemory-policy", "allkeys-lru")

    report = await inspect(bench.redis)

    assert any("allkeys-lru" in warning for warning in report.warnings)
