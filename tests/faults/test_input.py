"""Entries that nobody meant, or somebody meant badly, through a whole worker."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.conftest import QUICK
from tests.processes.fleet import KEYS, STREAM, Fleet, fleet, until
from tests.processes.jobs import scripted

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

Fields = Mapping[bytes, bytes]

DEEP = b'{"a":' * 5_000 + b"1" + b"}" * 5_000
FAULTY: dict[str, tuple[dict[str | bytes, str | bytes], str]] = {
    "nothing the worker knows": ({"hello": "world"}, "request.field_missing"),
    "an empty job": ({"job": ""}, "request.field_missing"),
    "a job that is no text": ({"job": b"\xff\xfe"}, "request.field_invalid"),
    "meta that is no JSON": ({"job": "render", "meta": "{"}, "request.meta_invalid"),
    "meta that is no object": ({"job": "render", "meta": "[1]"}, "request.meta_invalid"),
    "meta of numbers": ({"job": "render", "meta": '{"a": 1}'}, "request.meta_invalid"),
    "meta nested 5,000 deep": ({"job": "render", "meta": DEEP}, "request.meta"),
    "meta of a megabyte": (
        {"job": "render", "meta": json.dumps({"a": "x" * 1_000_000})},
        "request.meta_too_large",
    ),
    "a payload of a megabyte": ({"job": "render", "payload": bytes(1_000_000)}, "request.payload_too_large"),
    "a priority that is none": ({"job": "render", "priority": "high"}, "request.field_invalid"),
    "a deadline that is none": ({"job": "render", "deadline": "soon"}, "request.field_invalid"),
    "a namespace not served": ({"job": "render", "namespace": "secret"}, "request.place_not_configured"),
    "a version from the future": ({"job": "render", "v": "99"}, "request.version_unknown"),
    "the worker's own keys": (
        {"job": "render", "reply_to": "{dispatch}:requests"},
        "request.reply_to_invalid",
    ),
    "somebody else's keys": ({"job": "render", "reply_to": "../../etc"}, "request.reply_to_invalid"),
    "a path out of the jobs": ({"job": "../system/gc"}, "nomad.job_unknown"),
    "a path, escaped": ({"job": "..%2f..%2fsystem%2fgc"}, "nomad.job_unknown"),
    "a query": ({"job": "render?namespace=secret"}, "nomad.job_unknown"),
    "a fragment": ({"job": "render#x"}, "nomad.job_unknown"),
    "another endpoint": ({"job": "render/evaluate"}, "nomad.job_unknown"),
    "dots alone": ({"job": ".."}, "nomad.job_unknown"),
    "line breaks": ({"job": "render\r\nX-Nomad-Token: x"}, "request.field_invalid"),
}


@pytest.mark.telling
async def test_F19_c24_every_faulty_entry_is_answered_once_and_buried(world: Fleet) -> None:
    worker = await world.start()

    sent = {name: await world.send(**_text(fields)) for name, (fields, _) in FAULTY.items()}
    good = await world.send(job="render")
    finals = await world.all_final([*sent.values(), good], 30)

    codes = {name: final.error_code for name, final in zip(sent, finals[:-1], strict=True)}
    wrong = {name: codes[name] for name, (_, code) in FAULTY.items() if not codes[name].startswith(code)}
    assert not wrong
    assert finals[-1].verdict == "succeeded"
    assert {final.verdict for final in finals[:-1]} == {"rejected"}
    assert await world.redis.xlen(KEYS.dead) == len(FAULTY)
    assert world.children_by_token() == {good: 1}
    assert len(await world.finals()) == len(FAULTY) + 1
    assert await world.pending() == 0
    assert worker.running


def _text(fields: Mapping[Any, Any]) -> dict[str, str | bytes]:
    return {name if isinstance(name, str) else name.decode(): value for name, value in fields.items()}


KNOWN = [
    b"job", b"payload", b"meta", b"namespace", b"region", b"priority", b"id_prefix", b"detach", b"reply_to",
    b"correlation_id", b"tenant", b"deadline", b"not_before", b"timeout_seconds", b"idempotency_key",
    b"traceparent", b"v",
]  # fmt: skip
ODD = st.sampled_from(
    [
        b"", b"render", b"..", b"/", b"%2f", b"render/dispatch", b"a?b", b"{}", b'{"a":"b"}', b"[]", b"null",
        b"NaN", b"-1", b"1e999", b"9" * 400, b"true", b"2001-01-01T00:00:00Z", b"\x00", b"\xff",
        b"{dispatch}:dead",
        b"default", b"1", b"0", DEEP, b"x" * 20_000, "\u202e\u0000".encode(), b'{"\\ud800":"x"}',
    ]
)  # fmt: skip
# A `not_before` in the far future is honoured, and would never be answered here.
ENTRIES = st.dictionaries(
    st.one_of(st.sampled_from(KNOWN), st.binary(min_size=1, max_size=40)),
    st.one_of(ODD, st.binary(max_size=200), st.text(max_size=50).map(lambda text: text.encode())),
    min_size=1,
    max_size=12,
).map(
    lambda fields: (
        {name: value for name, value in fields.items() if name != b"not_before"} or {b"job": b"render"}
    )
)


def entries(count: int) -> list[Fields]:
    """Examples that hypothesis finds worth trying, sent together: one worker serves them all."""
    found: list[Fields] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(ENTRIES)
    def collect(fields: Fields) -> None:
        found.append(fields)

    collect()
    return found


@pytest.fixture
async def small_world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, [scripted("render")], QUICK) as made:
        yield made


async def test_F19_whatever_an_entry_holds_it_gets_one_final_reply(small_world: Fleet) -> None:
    world = small_world
    found = await asyncio.to_thread(entries, 600)
    worker = await world.start()

    pipeline = world.redis.pipeline(transaction=False)
    for fields in found:
        pipeline.xadd(STREAM, dict(fields))
    sent = [entry_id.decode() for entry_id in await pipeline.execute()]
    await until(lambda: _none_pending(world), 90, "nothing is left")

    finals: dict[str, list[str]] = {}
    keys = await world.redis.keys(f"{KEYS.replies}*")
    for key in keys:
        for _, fields in await world.redis.xrange(key):
            if fields[b"final"] == b"1":
                finals.setdefault(fields[b"id"].decode(), []).append(fields[b"verdict"].decode())
    assert {message_id: len(finals.get(message_id, [])) for message_id in sent} == dict.fromkeys(sent, 1)
    assert worker.running
    assert not worker.logged("message.crashed")
    assert (await worker.get("/metrics")).is_success
    assert (await worker.get("/status")).is_success
    assert max(world.children_by_token().values(), default=0) <= 1


async def _none_pending(world: Fleet) -> bool:
    await asyncio.sleep(0.1)
    if not await world.redis.exists(STREAM):
        return False
    (group,) = await world.redis.xinfo_groups(STREAM)
    return bool(group["pending"] == 0 and group["lag"] == 0)
