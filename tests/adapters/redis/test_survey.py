"""The backlog as replicas share it, and what stays unknown."""

import pytest

from tests.adapters.redis.conftest import KEYS, Bench
from worker.adapters.redis.survey import RedisSurvey

pytestmark = pytest.mark.anyio


def survey(bench: Bench) -> RedisSurvey:
    return RedisSurvey(bench.redis, KEYS, streams=["requests"], group="workers")


async def test_a_stream_nobody_wrote_to_has_no_backlog(bench: Bench) -> None:
    backlog = await survey(bench).backlog()

    assert (backlog.streams["requests"].lag, backlog.workers, backlog.dead_letters) == (0, 0, 0)


async def test_what_waits_and_what_is_held_are_counted_apart(bench: Bench) -> None:
    worker = await bench.worker("a")
    for _ in range(5):
        await bench.request()
    await worker.reads(2)

    stream = (await survey(bench).backlog()).streams["requests"]

    assert (stream.lag, stream.pending) == (3, 2)
    assert stream.oldest_pending_seconds is not None
    assert 0 <= stream.oldest_pending_seconds < 60


async def test_a_lag_that_redis_does_not_know_is_counted(bench: Bench) -> None:
    worker = await bench.worker("a")
    keys = [await bench.request() for _ in range(5)]
    await worker.reads(1)
    await bench.redis.xdel(KEYS.stream("requests"), keys[3].id)
    (group,) = await bench.redis.xinfo_groups(KEYS.stream("requests"))
    assert group["lag"] is None

    assert (await survey(bench).backlog()).streams["requests"].lag == 3


async def test_a_lost_group_leaves_the_lag_unknown(bench: Bench) -> None:
    await bench.request()

    assert (await survey(bench).backlog()).streams["requests"].lag is None


async def test_replicas_are_listed_with_what_they_tell_about_themselves(bench: Bench) -> None:
    await bench.worker("a")

    (seen,) = await survey(bench).workers()

    assert seen.name == "a"
    assert 50 < seen.lease_remaining_seconds <= 60
    assert seen.about["v"] == "1"
