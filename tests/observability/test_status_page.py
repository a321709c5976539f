"""The status page tells what is going on, and nothing in it is HTML from outside."""

import re
from html.parser import HTMLParser
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observability.stage import KEYS, Stage, stage
from worker.adapters.redis.lookback import Story
from worker.core.backlog import Backlog
from worker.core.model import MessageKey, Phase, Record, Routing, Run, Verdict
from worker.core.pace import Brake
from worker.core.reply import Reply
from worker.runtime.statuspage import view as view_module
from worker.runtime.statuspage.html import tag
from worker.runtime.statuspage.page import overview
from worker.runtime.statuspage.story import found
from worker.runtime.statuspage.view import Found, InHand, Overview, Part
from worker.runtime.statuspage.words import duration

pytestmark = pytest.mark.anyio

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
VOID = {"meta", "input", "link"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails on elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def view(text: str = "render", url: str = "http://nomad.example/ui/jobs/x") -> Overview:
    key = MessageKey("requests", "1-0")
    reply = Reply(type="result", id=text, stream=text, seq=3, final=True, job=text, error_code=text, at=text)
    return Overview(
        worker=text,
        version=text,
        at_ms=0,
        not_ready={text: text},
        draining=False,
        in_flight=1,
        in_flight_limit=500,
        dispatch_limit=3,
        dispatch_most=16,
        brake=Brake.LATENCY,
        backlog=Part(Backlog()),
        workers=Part(None, text),
        messages=[InHand(key, text, text, text, text, url, 3.0, 1)],
        results=Part([reply]),
        dead_letters=Part([]),
    )


@given(st.text(min_size=1) | st.just("<script>alert(1)</script>") | st.just("' onload=alert(1) \""))
def test_text_from_outside_adds_no_element_and_no_attribute(text: str) -> None:
    hostile, harmless = Outline(overview(view(text))), Outline(overview(view()))

    assert [name for name, _ in hostile.tags] == [name for name, _ in harmless.tags]
    assert [sorted(each) for _, each in hostile.tags] == [sorted(each) for _, each in harmless.tags]


@given(st.text())
def test_what_is_searched_for_stays_text(sought: str) -> None:
    page = Outline(found(Found("w", "1", 0, sought, fault="no")))

    (box,) = page.all("input")
    assert (
        box["value"] == sought.replace("\r\n", "\n").replace("\r", "\n") or "\r" in sought or "\0" in sought
    )
    assert len(page.all("script")) == 1


def test_what_holds_dispatches_back_is_told() -> None:
    assert "Dispatches at once3of at most 16: Nomad is slow to answer" in Outline(overview(view())).text


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "//evil", ""])
def test_a_link_leads_to_the_web_or_to_this_page_only(address: str) -> None:
    page = Outline(overview(view(url=address)))

    assert address == "//evil" or address not in {link["href"] for link in page.all("a")}


def test_an_attribute_is_escaped_or_left_out() -> None:
    assert tag("a", "<&>", href='"', hidden=True, title=None, class_=False) == (
        '<a href="&quot;" hidden>&lt;&amp;&gt;</a>'
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (0.0421, "42 ms"),
        (2.55, "2.5 s"),
        (59.9, "59 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (356_400, "4 d 03 h"),
    ],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


async def test_a_browser_sees_what_is_going_on() -> None:
    async with stage({"WORKER_NAME": "w-1"}) as world:
        sent = await world.load()
        (held,) = await world.hold(1)

        answer = await world.get("/status", BROWSER)
        page = Outline(answer.text)

        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        links = {link["href"] for link in page.all("a")}
        assert f"/status?id=requests%3A{held}" in links
        assert f"/status?id=requests%3A{sent[0]}" in links
        assert any(f"{world.stack.nomad.address}/ui/jobs/demo-render" in str(link) for link in links)
        for words in ("Ready", "running", "succeeded", "job_unknown", "w-1this one", "detached"):
            assert words in page.text
        assert "<script>alert" not in answer.text
        # Its own one, which the policy names by its hash.
        assert page.all("script") == [{}]
        told = await world.get("/status")
        assert told.headers["Content-Type"].startswith("application/json")
        dispatches = told.json()["dispatches"]
        assert 1 <= dispatches.pop("limit") <= 16
        assert dispatches == {"most": 16, "brake": "none"}
        assert re.search(r"Dispatches at once\d+of at most 16Workers", page.text)

        await it_lists_dead_letters(world)
        await it_tells_a_message_s_story(world, sent[1], held)
        await it_lives_without_redis(world)


async def it_lists_dead_letters(world: Stage) -> None:
    page = Outline((await world.get("/status?dead", BROWSER)).text)

    assert "All of them, the newest first" in page.text
    assert "Nomad answered 500: parameterized job not found" in page.text
    assert "dispatch-worker dlq list" in page.text


async def it_tells_a_message_s_story(world: Stage, failed: str, held: str) -> None:
    waiting = (await world.redis.xadd(KEYS.stream("requests"), {b"job": b"x"}, id="9999999999999-0")).decode()
    pages = {
        query: Outline((await world.get(f"/status?id={query}", BROWSER)).text).text
        for query in (failed, f"requests:{failed}", held, "1-1", "other:1-1", "x", "", waiting)
    }

    assert "exit code 3" in pages[failed]
    assert "By its result: queue " in pages[failed]
    assert f"dispatch-worker cancel requests:{held}" in pages[held]
    assert "dispatch-worker cancel" not in pages[failed]
    assert pages[f"requests:{failed}"].count("exit code 3") == 1
    assert "running" in pages[held]
    assert "Neither the streams nor the ledger know" in pages["1-1"]
    assert "This worker reads no stream of that name, but requests." in pages["other:1-1"]
    assert "has the form" in pages["x"]
    assert "Not told" not in pages[""]
    assert waiting in pages[waiting]


async def it_lives_without_redis(world: Stage) -> None:
    with patch.object(view_module, "REDIS_SECONDS", 0.3):
        world.stack.redis.pause()
        try:
            page = Outline((await world.get("/status", BROWSER)).text)
        finally:
            world.stack.redis.resume()

    assert page.text.count("Redis did not answer within 0.3 s.") == 4
    assert "demo-render" in page.text


def test_it_can_be_read_aloud_and_used_by_keyboard() -> None:
    page = Outline(overview(view()))

    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")) == 1
    assert page.tags[[name for name, _ in page.tags].index("body") + 1][1]["href"] == "#content"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    assert all(
        box["tabindex"] == "0" and box["aria-label"] for box in page.all("div") if box.get("role") == "region"
    )
    headings = {heading["id"] for heading in page.all("h2")}
    assert {part["aria-labelledby"] for part in page.all("section")} == headings
    labelled = {label["for"] for label in page.all("label")}
    assert {box["id"] for box in page.all("input")} == labelled


def test_a_message_that_ran_twice_shows_both_runs() -> None:
    key = MessageKey("requests", "1700000000000-0")
    first = Run(1, "render/dispatch-1", Verdict.FAILED, 3, error_message="exit <code> 3", ended_at_ms=1)
    record = Record(
        key, Phase.RUNNING, key.id, Routing(job="render"), attempt=2, runs=(first,), picked_at_ms=2
    )
    story = Story(key, waiting=True, record=record)

    page = Outline(found(Found("w", "1", 0, key.id, stories=[story])))

    assert "Earlier runs" in page.text
    assert "exit <code> 3" in page.text
    assert "Its turn" in page.text


def test_every_part_that_is_kept_up_to_date_can_be_found_again() -> None:
    for html in (overview(view()), found(Found("w", "1", 0, "1-0", fault="no"))):
        page = Outline(html)
        live = [attributes["id"] for _, attributes in page.tags if "data-live" in attributes]
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]

        assert live
        assert None not in live
        assert len(ids) == len(set(ids))


def test_what_is_unknown_looks_other_than_nought() -> None:
    page = overview(view())

    assert page.count('class="figure unknown"') == 4
    assert ">0<" not in page
