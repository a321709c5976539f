"""The status page tells what is going on, in a real browser too, and nothing in it is HTML from outside."""

import asyncio
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observability.stage import KEYS, Stage, chromium, stage
from worker.core.backlog import Backlog
from worker.core.model import MessageKey
from worker.core.reply import Reply
from worker.runtime.statuspage import view as view_module
from worker.runtime.statuspage.html import tag
from worker.runtime.statuspage.page import overview
from worker.runtime.statuspage.story import found
from worker.runtime.statuspage.view import Found, InHand, Overview, Part
from worker.runtime.statuspage.words import duration

pytestmark = pytest.mark.anyio

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
VOID = {"meta", "input"}
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


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
        if self._open[-1:] != ["style"]:
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
        backlog=Part(Backlog()),
        workers=Part(None, text),
        messages=[InHand(key, text, text, text, text, url, 3.0, 1)],
        results=Part([reply]),
        dead_letters=Part([]),
    )


@given(st.text(min_size=1) | st.just("<script>alert(1)</script>") | st.just("' onload=alert(1) \""))
def test_text_from_outside_adds_no_element_and_no_attribute(text: str) -> None:
    hostile, harmless = Outline(overview(view(text), paused=True)), Outline(overview(view(), paused=True))

    assert [name for name, _ in hostile.tags] == [name for name, _ in harmless.tags]
    assert [sorted(each) for _, each in hostile.tags] == [sorted(each) for _, each in harmless.tags]


@given(st.text())
def test_what_is_searched_for_stays_text(sought: str) -> None:
    page = Outline(found(Found("w", "1", 0, sought, fault="no")))

    (box,) = page.all("input")
    assert (
        box["value"] == sought.replace("\r\n", "\n").replace("\r", "\n") or "\r" in sought or "\0" in sought
    )
    assert page.all("script") == []


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "//evil", ""])
def test_a_link_leads_to_the_web_or_to_this_page_only(address: str) -> None:
    page = Outline(overview(view(url=address), paused=True))

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
        assert page.all("script") == []
        assert {"http-equiv": "refresh", "content": "5"} in page.all("meta")
        assert (await world.get("/status")).headers["Content-Type"].startswith("application/json")

        await it_can_be_paused(world)
        await it_tells_a_message_s_story(world, sent[1], held)
        await it_lives_without_redis(world)


async def it_can_be_paused(world: Stage) -> None:
    page = Outline((await world.get("/status?pause", BROWSER)).text)

    assert not any(meta.get("http-equiv") for meta in page.all("meta"))
    assert "/status" in {link["href"] for link in page.all("a")}


async def it_tells_a_message_s_story(world: Stage, failed: str, held: str) -> None:
    waiting = (await world.redis.xadd(KEYS.stream("requests"), {b"job": b"x"}, id="9999999999999-0")).decode()
    pages = {
        query: Outline((await world.get(f"/status?id={query}", BROWSER)).text).text
        for query in (failed, f"requests:{failed}", held, "1-1", "other:1-1", "x", "", waiting)
    }

    assert "exit code 3" in pages[failed]
    assert "Duration: run" in pages[failed]
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


@needs_chromium
async def test_a_real_browser_renders_it_without_a_complaint(tmp_path: Path) -> None:
    async with stage() as world:
        await world.load()
        await world.hold(2)
        address = world.stack.http_address
        shots = [tmp_path / "light.png", tmp_path / "dark.png"]

        dom = await chromium(tmp_path, "--dump-dom", "--enable-logging=stderr", f"{address}/status?pause")
        log = await chromium(
            tmp_path, "--dump-dom", "--enable-logging=stderr", f"{address}/status?pause", errors=True
        )
        await chromium(
            tmp_path, f"--screenshot={shots[0]}", "--window-size=1280,900", f"{address}/status?pause"
        )
        await chromium(
            tmp_path,
            f"--screenshot={shots[1]}",
            "--window-size=1280,900",
            "--blink-settings=preferredColorScheme=0",
            f"{address}/status?pause",
        )

        # The tree the browser made of it is the one that was meant: it repaired nothing.
        meant = Outline((await world.get("/status?pause", BROWSER)).text)
        assert re.findall(r"<(h1|h2|table|caption|th|nav|main)\b", dom) == [
            name for name, _ in meant.tags if name in {"h1", "h2", "table", "caption", "th", "nav", "main"}
        ]
        assert "Content Security Policy" not in log
        light, dark = [await asyncio.to_thread(shot.read_bytes) for shot in shots]
        assert light[:8] == dark[:8] == b"\x89PNG\r\n\x1a\n"
        assert light != dark


def test_it_can_be_read_aloud_and_used_by_keyboard() -> None:
    page = Outline(overview(view(), paused=False))

    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.tags[[name for name, _ in page.tags].index("body") + 1][1]["href"] == "#content"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    assert all(
        box["tabindex"] == "0" and box["aria-label"] for box in page.all("div") if box.get("role") == "region"
    )
    search = Outline(found(Found("w", "1", 0, "")))
    assert search.all("label")[0]["for"] == search.all("input")[0]["id"]
