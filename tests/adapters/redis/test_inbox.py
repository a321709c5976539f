"""Which stream is read next where nothing is limited; on a real Redis."""

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from worker.adapters.redis.inbox import RedisInbox
from worker.core.model import Entry

pytestmark = pytest.mark.anyio

WEIGHTS = {"low": 1, "high": 3}


def inbox(bench: Bench, ageing_seconds: float | None = None) -> RedisInbox:
    return RedisInbox(
        bench.redis,
        bench.redis,
        KEYS,
        streams=WEIGHTS,
        group="workers",
        consumer="a",
        block_ms=10,
        ageing_seconds=ageing_seconds,
    )


def names(entries: list[Entry]) -> list[str]:
    return [str(entry.key) for entry in entries]


async def test_with_room_for_one_at_a_time_each_stream_has_its_share(bench: Bench) -> None:
    reader = inbox(bench)
    await reader.prepare()
    for number in range(40):
        for name in WEIGHTS:
            await bench.redis.xadd(KEYS.stream(name), {"job": "render"}, id=f"{number + 1}-0")

    read = [entry.key.stream for _ in range(20) for entry in await reader.read(1)]

    assert (read.count("high"), read.count("low")) == (15, 5)


async def test_what_one_stream_lacks_another_gives(bench: Bench) -> None:
    reader = inbox(bench)
    await reader.prepare()
    await bench.redis.xadd(KEYS.stream("high"), {"job": "render"})
    for _ in range(50):
        await bench.redis.xadd(KEYS.stream("low"), {"job": "render"})

    assert len(await reader.read(40)) == 40


@pytest.mark.parametrize(
    ("ageing_seconds", "expected"),
    [
        (0.0, ["high:100500-0", "high:109000-0", "high:111000-0", "low:100000-0"]),
        (10.0, ["high:100500-0", "high:109000-0", "low:100000-0", "high:111000-0"]),
    ],
)
async def test_in_strict_order_the_higher_goes_first_unless_the_other_has_aged(
    bench: Bench, ageing_seconds: float, expected: list[str]
) -> None:
    reader = inbox(bench, ageing_seconds)
    await reader.prepare()
    await bench.redis.xadd(KEYS.stream("low"), {"job": "render"}, id="100000-0")
    for at in (100_500, 109_000, 111_000):
        await bench.redis.xadd(KEYS.stream("high"), {"job": "render"}, id=f"{at}-0")

    read = [name for _ in range(4) for name in names(list(await reader.read(1)))]

    assert read == expected


async def test_in_strict_order_a_read_of_many_takes_all_there_is(bench: Bench) -> None:
    reader = inbox(bench, 300.0)
    await reader.prepare()
    for name in WEIGHTS:
        for _ in range(30):
            await bench.redis.xadd(KEYS.stream(name), {"job": "render"})

    read = await reader.read(100)

    assert len(read) == 60
    assert await reader.read(100) == []
