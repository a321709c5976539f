"""Dead letters one by one: found, read, requeued with edits, dropped, and expired with notice."""

import asyncio
import json

import pytest

from tests.adapters.redis.conftest import KEYS
from tests.deadletter.conftest import Morgue
from worker.adapters.redis.survey import RedisSurvey
from worker.core.model import MessageKey
from worker.deadletter import DeadLetter, Edits, Filter, LetterGone, LetterPacked

pytestmark = pytest.mark.anyio


async def found(morgue: Morgue, wanted: Filter | None = None) -> list[DeadLetter]:
    return [letter async for letter in morgue.letters.find(wanted)]


async def test_a_letter_is_read_with_all_it_was(morgue: Morgue) -> None:
    key = await morgue.dies(tenant="acme", payload=b"\x00\xff", replay_of=b"requests:1-0")

    (letter,) = await found(morgue)
    whole = await morgue.letters.read(letter.id)

    assert (letter.key, letter.code, letter.job, letter.tenant) == (
        key,
        "nomad.job_unknown",
        "render",
        "acme",
    )
    assert (letter.payload_bytes, letter.field_count) == (2, 3)
    assert whole.fields[b"payload"] == b"\x00\xff"
    assert whole.replay_of == "requests:1-0"


@pytest.mark.parametrize(
    ("wanted", "jobs"),
    [
        (Filter(), ["a", "b", "c"]),
        (Filter(reason="nomad.*"), ["a", "c"]),
        (Filter(reason="rejected", tenant="acme"), ["a"]),
        (Filter(job="[bc]"), ["b", "c"]),
        (Filter(stream="other"), []),
        (Filter(older_seconds=3600), []),
        (Filter(newer_seconds=3600, job="a"), ["a"]),
    ],
)
async def test_filters_choose(morgue: Morgue, wanted: Filter, jobs: list[str]) -> None:
    await morgue.dies("nomad.job_unknown", "acme", job=b"a")
    await morgue.dies("request.poison", "", job=b"b")
    await morgue.dies("nomad.refused", "other", job=b"c")

    assert [letter.job for letter in await found(morgue, wanted)] == jobs


async def test_hundreds_of_letters_come_page_by_page_in_order(morgue: Morgue) -> None:
    keys = [await morgue.dies() for _ in range(450)]

    assert [letter.key for letter in await found(morgue)] == keys


async def test_a_requeued_letter_is_a_new_message_with_the_same_bytes_and_its_lineage(morgue: Morgue) -> None:
    old = await morgue.dies(payload=b"\x00\xff", extra=b"kept", meta=b'{"a": "1"}')
    (letter,) = await found(morgue)

    new = await morgue.letters.requeue(letter)

    assert new.id != old.id
    assert (await morgue.requests())[-1] == {
        b"job": b"render",
        b"payload": b"\x00\xff",
        b"extra": b"kept",
        b"meta": b'{"a": "1"}',
        b"replay_of": str(old).encode(),
    }
    assert await found(morgue) == []


async def test_edits_change_meta_and_fields_and_nothing_else(morgue: Morgue) -> None:
    await morgue.dies(meta=b'{"a": "1", "b": "2"}', deadline=b"2020-01-01T00:00:00Z", payload=b"p")
    (letter,) = await found(morgue)
    edits = Edits(
        meta={"c": "=3"}, meta_unset=["a"], fields={"job": b"other", "tenant": b"t"}, unset=["deadline"]
    )

    assert await morgue.letters.fault(letter, edits) == ""
    await morgue.letters.requeue(letter, edits)

    fields = (await morgue.requests())[-1]
    assert json.loads(fields.pop(b"meta")) == {"b": "2", "c": "=3"}
    assert fields == {
        b"job": b"other",
        b"payload": b"p",
        b"tenant": b"t",
        b"replay_of": str(letter.key).encode(),
    }


async def test_a_letter_still_faulty_is_told_before_it_is_requeued(morgue: Morgue) -> None:
    await morgue.dies("request.meta_invalid", meta=b"not json")
    (letter,) = await found(morgue)

    assert "field meta" in await morgue.letters.fault(letter)
    assert "set it as a whole" in await morgue.letters.fault(letter, Edits(meta={"a": "1"}))
    assert await morgue.letters.fault(letter, Edits(fields={"meta": b"{}"})) == ""


async def test_a_requeue_whose_answer_was_lost_gives_the_same_message_again(morgue: Morgue) -> None:
    await morgue.dies()
    (letter,) = await found(morgue)

    first = await morgue.letters.requeue(letter)
    again = await morgue.letters.requeue(letter)

    assert first == again
    assert len(await morgue.requests()) == 2


async def test_two_people_at_once_requeue_a_letter_once(morgue: Morgue) -> None:
    await morgue.dies()
    (letter,) = await found(morgue)

    keys = await asyncio.gather(*(morgue.letters.requeue(letter) for _ in range(20)))

    assert len(set(keys)) == 1
    assert len(await morgue.requests()) == 2


async def test_a_letter_that_was_dropped_cannot_be_requeued(morgue: Morgue) -> None:
    await morgue.dies()
    (letter,) = await found(morgue)

    assert await morgue.letters.drop(letter.id)
    assert not await morgue.letters.drop(letter.id)
    for act in (morgue.letters.read(letter.id), morgue.letters.requeue(letter)):
        with pytest.raises(LetterGone):
            await act
    assert len(await morgue.requests()) == 1


async def test_a_request_cannot_pose_as_another_streams(morgue: Morgue) -> None:
    key = await morgue.dies(dead_stream=b"high", dead_id=b"9-9", dead_job=b"forged")
    (letter,) = await found(morgue)

    assert (letter.key, letter.job) == (key, "render")
    assert (await morgue.letters.requeue(letter)).stream == "requests"


async def test_a_letter_of_thousands_of_fields_stays_where_it_is(morgue: Morgue) -> None:
    await morgue.dies(**{f"f{n}": b"x" for n in range(5_000)})  # type: ignore[arg-type]
    (letter,) = await found(morgue)

    assert "more than a thousand fields" in await morgue.letters.fault(letter)
    with pytest.raises(LetterPacked):
        await morgue.letters.requeue(letter)
    assert await morgue.letters.count() == 1


async def test_old_letters_are_dropped_only_after_notice(morgue: Morgue) -> None:
    day_ms = 86_400_000
    seconds, _ = await morgue.bench.redis.time()
    now_ms = seconds * 1000
    for age_days in (40, 29.5, 1):
        entry_id = f"{now_ms - int(age_days * day_ms)}-0"
        await morgue.bench.redis.xadd(KEYS.dead, {"dead_stream": "requests"}, id=entry_id)
    leases = (await morgue.bench.worker("b")).leases

    first = await leases.expire_dead(30 * 86_400, 86_400)
    again = await leases.expire_dead(30 * 86_400, 86_400)
    upto, since = (await morgue.bench.redis.get(KEYS.dead_notice)).decode().split(":")
    await morgue.bench.redis.set(KEYS.dead_notice, f"{upto}:{int(since) - day_ms}")
    later = await leases.expire_dead(30 * 86_400, 86_400)

    assert (first.dropped, first.announced, again.dropped) == (0, 2, 0)
    assert 86_000 < again.seconds_left <= 86_400
    assert (later.dropped, later.announced) == (2, 0)
    assert await morgue.letters.count() == 1


async def test_letters_that_expire_are_told_until_somebody_has_seen_to_them(morgue: Morgue) -> None:
    seconds, _ = await morgue.bench.redis.time()
    old_id = f"{(seconds - 40 * 86_400) * 1000}-0"
    await morgue.bench.redis.xadd(KEYS.dead, {"dead_stream": "requests"}, id=old_id)
    await morgue.dies()
    survey = RedisSurvey(morgue.bench.redis, KEYS, streams=["requests"], group="workers")
    before = await survey.backlog()
    await (await morgue.bench.worker("b")).leases.expire_dead(30 * 86_400, 86_400)
    announced = await survey.backlog()
    await morgue.letters.drop(old_id)
    after = await survey.backlog()

    told = [backlog.dead_letters_expire for backlog in (before, announced, after)]
    assert told == [False, True, False]


async def test_a_young_letter_is_not_announced(morgue: Morgue) -> None:
    await morgue.dies()
    leases = (await morgue.bench.worker("b")).leases

    expiry = await leases.expire_dead(86_400, 3_600)

    assert (expiry.dropped, expiry.announced) == (0, 0)
    assert not await morgue.bench.redis.exists(KEYS.dead_notice)


def test_the_key_of_a_letter_is_its_message() -> None:
    assert KEYS.message_of(KEYS.message(MessageKey("high", "1-0"))) == MessageKey("high", "1-0")
