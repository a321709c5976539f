"""What both views are made of: the frame around them, tables, badges, figures.

Knows nothing of what they show.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Literal
from urllib.parse import urlsplit

from worker.core.instants import format_rfc3339, parse_rfc3339
from worker.core.model import Verdict
from worker.runtime.statuspage.html import Markup, document, raw_style, tag
from worker.runtime.statuspage.words import UNKNOWN, clock, duration

REFRESH_SECONDS = 5
STYLE = files("worker.runtime.statuspage").joinpath("style.css").read_text(encoding="utf-8")
HEADERS = {
    # The one inline style sheet is named by its hash: nothing else is loaded, run, sent or framed.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Tone = Literal["good", "warn", "bad", "plain"]
WELL = frozenset({Verdict.SUCCEEDED, Verdict.DETACHED})
_SIGNS: dict[Tone, str] = {"good": "✓", "warn": "▲", "bad": "✕", "plain": ""}
"""Colour is never the only difference."""


def frame(
    title: str,
    worker: str,
    version: str,
    at_ms: int,
    *content: object,
    refresh: Literal["on", "paused", "none"],
) -> str:
    """A whole page around its content."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", f"{title} · {worker}"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        refresh == "on" and tag("meta", http_equiv="refresh", content=REFRESH_SECONDS),
        raw_style(STYLE),
    )
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        tag(
            "header",
            tag("h1", title),
            tag("p", mono(worker), f" · version {version} · ", tag("span", clock(at_ms), class_="now")),
            tag("nav", tag("ul", *_navigation(refresh)), aria_label="Views"),
        ),
        tag("main", *content, id="content"),
        tag("footer", tag("p", "Read-only. The same as JSON: ", tag("code", "curl /status"), ".")),
    )
    return document("en", head, body)


def _navigation(refresh: str) -> Iterable[Markup]:
    overview = tag("a", "Overview", href="/status", aria_current=refresh != "none" and "page")
    yield tag("li", overview)
    yield tag("li", tag("a", "Find a message", href="/status?id=", aria_current=refresh == "none" and "page"))
    if refresh == "on":
        yield tag("li", tag("a", "Pause", href="/status?pause"), f" (reloads every {REFRESH_SECONDS} s)")
    if refresh == "paused":
        yield tag("li", tag("a", "Go on reloading", href="/status"))


def section(title: str, missing: str, *content: object) -> Markup:
    """A part of the page under its heading; where `missing` says why there is none, that instead."""
    if missing:
        return tag("section", tag("h2", title), tag("p", badge("bad", "Unknown"), f" {missing}"))
    return tag("section", tag("h2", title), *content)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; a column whose title ends with `|n` holds numbers. The first cell of a row is its heading."""
    numeric = [column.endswith("|n") for column in columns]
    head = [
        tag("th", column.removesuffix("|n"), scope="col", class_="n" if n else None)
        for column, n in zip(columns, numeric, strict=True)
    ]
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, class_="n" if n else None)
                for cell, n in zip(row[1:], numeric[1:], strict=True)
            ),
        )
        for row in rows
    ]
    empty = tag("tr", tag("td", "None.", colspan=len(columns), class_="note"))
    inside = tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *(lines or [empty]))
    # Scrolls by itself where the screen is narrow; reachable by keyboard, as whatever scrolls must be.
    return tag("div", tag("table", *inside), class_="scroll", tabindex=0, role="region", aria_label=caption)


def figure(
    name: str, value: str, text: str, *, tone: str = "", meter: tuple[int, int] | None = None
) -> Markup:
    """One key figure."""
    bar = meter and tag("meter", value=meter[0], max=meter[1], high=meter[1] * 0.9, aria_label=text)
    return tag(
        "div", tag("dt", name), tag("dd", tag("strong", value, class_=tone or None), bar, tag("small", text))
    )


def badge(tone: Tone, text: str) -> Markup:
    """A word with a sign and a colour."""
    sign = _SIGNS[tone] and tag("span", f"{_SIGNS[tone]} ", aria_hidden="true")
    return tag("span", sign, text, class_=f"badge {tone}")


def verdict_badge(verdict: Verdict | None) -> Markup:
    """How a message ended."""
    return badge("good" if verdict in WELL else "bad", verdict.value if verdict else UNKNOWN)


def mono(text: str) -> Markup:
    """An identifier."""
    return tag("code", text)


def note(text: str) -> Markup:
    """A remark."""
    return tag("p", text, class_="note")


def link(address: str, text: Markup) -> Markup:
    """A link, where the address is one of this page or of the web; else the text alone."""
    safe = address.startswith("/") or urlsplit(address).scheme in {"http", "https"}
    return tag("a", text, href=address) if safe else text


def when(unix_ms: int) -> Markup:
    """A point in time."""
    return tag("time", clock(unix_ms), datetime=format_rfc3339(unix_ms))


def ago(rfc3339: str, now_ms: int) -> Markup:
    """How long ago something was, with the point in time behind it."""
    try:
        seconds = (now_ms - parse_rfc3339(rfc3339)) / 1000
    except ValueError:
        return tag("span", rfc3339)
    return tag("time", f"{duration(max(0.0, seconds))} ago", datetime=rfc3339, title=rfc3339)
