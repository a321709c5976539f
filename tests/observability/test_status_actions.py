"""Actions on the status page: only where set up, only with the token, never for another site."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.observability.stage import KEYS, SOON, Stage, stage
from tests.observability.test_status_page import BROWSER, Outline
from worker.adapters.redis.connection import RedisOptions
from worker.client import Request
from worker.core.reply import decode_reply
from worker.runtime.statuspage import actions as actions_module
from worker.runtime.statuspage.actions import Actions, Carried, Order

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"
SAME = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_module, "REFUSAL_SECONDS", 0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stage]:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with stage({"WORKER_STATUS_TOKEN_FILE": str(file)}) as made:
        yield made


async def order(world: Stage, headers: Mapping[str, str] = SAME, /, **fields: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=SOON) as http:
        return await http.post(f"{world.stack.http_address}/status", data=fields, headers=headers)


def told(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 303, answer.text
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()}


async def counted(world: Stage) -> dict[str, str]:
    text = (await world.get("/metrics")).text
    name = "dispatch_worker_status_actions_total"
    lines = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if not line.endswith(" 0.0")}


async def test_a_job_is_cancelled_with_the_token_and_the_page_tells_so(world: Stage) -> None:
    (held,) = await world.hold(1)
    form = Outline((await world.get(f"/status?id={held}", BROWSER)).text)

    answer = told(await order(world, action="cancel", id=f"requests:{held}", token=TOKEN, by="ada"))
    final = await world.client.wait(await world.client.find("requests", held), timeout=SOON)

    assert {"name": "action", "value": "cancel"}.items() <= {
        key: value for key, value in form.all("button")[-1].items() if key in {"name", "value"}
    }.items()
    assert form.all("form")[-1]["method"] == "post"
    assert answer == {"id": f"requests:{held}", "told": "ordered"}
    page = Outline((await world.get("/status?id={id}&told={told}".format(**answer), BROWSER)).text)
    assert "Its job is being stopped" in page.text
    assert final.verdict is not None
    assert final.verdict.value == "cancelled"
    assert await counted(world) == {'{action="cancel",outcome="done"}': "1.0"}
    again = told(await order(world, action="cancel", id=f"requests:{held}", token=TOKEN))
    assert again["told"] == "too_late"


async def a_dead_letter(world: Stage) -> tuple[str, str]:
    """Its message's ID, and its own."""
    sent = await world.client.send(Request("demo-encode", payload=b"{}"))
    await world.client.wait(sent, timeout=SOON)
    ((letter, _),) = await world.redis.xrange(KEYS.dead)
    return sent.id, letter.decode()


async def test_a_dead_letter_is_requeued_as_a_new_message(world: Stage) -> None:
    message, letter = await a_dead_letter(world)
    page = Outline((await world.get(f"/status?id={message}", BROWSER)).text)

    answer = told(await order(world, action="requeue", id=f"requests:{message}", letter=letter, token=TOKEN))

    assert f"Dead letter {letter}" in page.text
    assert [button["value"] for button in page.all("button") if "value" in button] == ["requeue", "drop"]
    assert answer["told"] == "requeued"
    assert answer["id"].startswith("requests:")
    assert answer["id"] != f"requests:{message}"
    # It is as wrong as before.
    again = await world.client.wait(
        await world.client.find(*answer["id"].split(":")),
        timeout=SOON,
    )
    assert again.error_code == "nomad.meta_missing"
    # The old letter is gone: a second press makes no second request.
    entries = await world.redis.xlen(KEYS.stream("requests"))
    second = await order(world, action="requeue", id=f"requests:{message}", letter=letter, token=TOKEN)
    assert second.status_code == 409
    assert await world.redis.xlen(KEYS.stream("requests")) == entries


async def test_a_dead_letter_is_dropped_only_by_who_is_sure(world: Stage) -> None:
    message, letter = await a_dead_letter(world)
    fields = {"action": "drop", "id": f"requests:{message}", "letter": letter, "token": TOKEN}

    unsure = await order(world, **fields)
    kept = await world.redis.xlen(KEYS.dead)
    sure = told(await order(world, **fields, sure="yes"))
    gone = await order(world, **fields, sure="yes")

    assert unsure.status_code == 400
    assert "Dropping is for good: tick the box too." in Outline(unsure.text).text
    assert kept == 1
    assert sure == {"id": f"requests:{message}", "told": "dropped"}
    assert await world.redis.xlen(KEYS.dead) == 0
    assert gone.status_code == 409


REFUSED: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "no token": (SAME, {"token": ""}),
    "a wrong token": (SAME, {"token": f"{TOKEN}x"}),
    "a token of another alphabet": (SAME, {"token": "ключ-ключ-ключ-ключ"}),
    "another site's form, told by the browser": ({"Sec-Fetch-Site": "cross-site"}, {}),
    "a neighbour's form, told by the browser": ({"Sec-Fetch-Site": "same-site"}, {}),
    "another site's form, told by its origin": ({"Origin": "http://evil.example"}, {}),
    "a form of no origin at all": ({"Origin": "null"}, {}),
    "another port's form": ({"Origin": "http://127.0.0.1:1"}, {}),
}


async def test_whoever_has_not_the_token_or_comes_from_elsewhere_changes_nothing(world: Stage) -> None:
    (held,) = await world.hold(1)

    for name, (headers, fields) in REFUSED.items():
        asked = {"action": "cancel", "id": f"requests:{held}", "token": TOKEN, **fields}
        answer = await order(world, headers, **asked)
        assert answer.status_code == 403, name
        assert TOKEN not in answer.text

    assert await world.redis.zcard(KEYS.cancels) == 0
    assert await counted(world) == {'{action="cancel",outcome="refused"}': str(float(len(REFUSED)))}
    replies = [decode_reply(fields, key.decode()) for key, fields in await world.redis.xrange(KEYS.replies)]
    assert not any(reply.final for reply in replies)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"action": "explode"}, 400),
        ({}, 400),
        ({"action": "cancel"}, 400),
        ({"action": "cancel", "id": "other:1-1"}, 400),
        ({"action": "cancel", "id": "requests:1-1; DEL"}, 400),
        ({"action": "cancel", "id": "requests:1-1"}, 404),
        ({"action": "requeue", "letter": "x"}, 400),
        ({"action": "requeue", "letter": "1-1"}, 409),
        ({"action": "drop", "sure": "yes"}, 400),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_with_the_reason(
    shared: Callable[[Mapping[str, str]], asyncio.Future[Carried]], fields: dict[str, str], status: int
) -> None:
    carried = await shared({"token": TOKEN, **fields})

    assert (carried.status, carried.told) == (status, None)
    assert carried.refused.endswith(".")


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Callable[[Mapping[str, str]], "asyncio.Task[Carried]"]]:
    """Actions by themselves, on a Redis without a worker."""
    from worker.dev.embedded_redis import EmbeddedRedis  # noqa: PLC0415

    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with EmbeddedRedis() as redis:
        made = actions(file, redis.url)
        yield lambda fields: asyncio.create_task(made.carry_out(Order(fields)))
        await made.aclose()


def actions(file: Path | None, url: str = "redis://127.0.0.1:1/0") -> Actions:
    return Actions(
        file,
        RedisOptions(url),
        prefix="{dispatch}",
        streams=("requests",),
        count=lambda _action, _outcome: None,
        learn=lambda _token: None,
    )


@pytest.mark.parametrize(
    ("content", "status"), [(None, 503), ("", 503), ("short\n", 503), (b"\xff" * 20, 503), (TOKEN, 403)]
)
async def test_a_token_that_is_not_there_or_too_short_lets_nobody_in(
    tmp_path: Path, content: str | bytes | None, status: int
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    carried = await actions(file).carry_out(Order({"action": "cancel", "token": ""}))

    assert carried.status == status


async def test_without_a_token_file_the_page_is_read_only() -> None:
    async with stage() as world:
        (held,) = await world.hold(1)
        page = Outline((await world.get(f"/status?id={held}", BROWSER)).text)

        answer = await order(world, action="cancel", id=f"requests:{held}", token="")

        assert [form["method"] for form in page.all("form")] == ["get"]
        assert answer.status_code == 403
        assert "read-only" in Outline(answer.text).text
        assert await world.redis.zcard(KEYS.cancels) == 0


def test_who_orders_cannot_write_lines_into_the_log() -> None:
    assert Order({"by": "ada\n2026 ERROR\x1b[31m\u2028" + "x" * 99}).by == "ada2026 ERROR[31m" + "x" * 63


async def test_a_redis_that_does_not_answer_is_told_and_the_token_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions_module, "ACTION_SECONDS", 0.3)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    made = actions(file)
    fields = {"action": "cancel", "id": "requests:1-1", "token": TOKEN}

    away = await made.carry_out(Order(fields))
    file.write_text(TOKEN.upper())
    old = await made.carry_out(Order(fields))
    await made.aclose()

    assert (away.status, old.status) == (503, 403)
    assert away.refused
