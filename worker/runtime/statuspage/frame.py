"""What all views are made of: the frame around them, tables, badges, figures.

Knows nothing of what they show.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Literal
from urllib.parse import quote, urlsplit

from worker.core.instants import format_rfc3339, parse_rfc3339
from worker.core.model import Verdict
from worker.runtime.statuspage.html import Markup, document, raw, tag
from worker.runtime.statuspage.words import UNKNOWN, clock, duration


def _packaged(name: str) -> str:
    return files("worker.runtime.statuspage").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


STYLE, SCRIPT, ICON = _packaged("style.css"), _packaged("refresh.js"), _packaged("icon.svg")
HEADERS = {
    # The style sheet and the script are named by their hashes: nothing else is loaded, run, sent or framed.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Its own pages are told, so that a form's origin can be checked; other places learn nothing.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Tone = Literal["good", "warn", "bad", "plain"]
Here = Literal["overview", "dead", "message"]
WELL = frozenset({Verdict.SUCCEEDED, Verdict.DETACHED})
_SIGNS: dict[Tone, str] = {"good": "✓", "warn": "▲", "bad": "✕", "plain": ""}
"""Colour is never the only difference."""


def frame(
    title: str,
    worker: str,
    version: str,
    at_ms: int,
    *content: object,
    here: Here,
    sought: str = "",
) -> str:
    """A whole page around its content.

    Args:
        title: of this view.
        worker: who tells.
        version: of that worker.
        at_ms: when.
        content: its parts; those with `data-live` are kept up to date by the script.
        here: which view it is.
        sought: what was searched for.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", f"{title} · {worker}"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href=f"data:image/svg+xml,{quote(ICON)}"),
        raw("style", STYLE),
    )
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        tag(
            "header",
            tag(
                "div",
                tag("h1", title),
                tag("p", mono(worker), f" · version {version}"),
                class_="title",
            ),
            _search(sought),
            tag("nav", tag("ul", *_navigation(here)), aria_label="Views"),
            _freshness(at_ms),
        ),
        tag("main", *content, id="content", tabindex=-1),
        tag("footer", tag("p", "The same as JSON: ", tag("code", "curl /status"))),
        # At the end: it needs the page.
        raw("script", SCRIPT),
    )
    return document("en", head, body)


def _search(sought: str) -> Markup:
    box = tag(
        "input",
        id="id",
        name="id",
        value=sought,
        type="search",
        required=True,
        autocomplete="off",
        spellcheck="false",
        placeholder="1719999999999-0",
        title="As XADD returned it, or with its stream: requests:1719999999999-0",
    )
    return tag(
        "form",
        tag("label", "Message ID", for_="id"),
        box,
        tag("button", "Find", type="submit"),
        action="/status",
        method="get",
        role="search",
    )


def _navigation(here: Here) -> Iterable[Markup]:
    for name, text, address in (
        ("overview", "Overview", "/status"),
        ("dead", "Dead letters", "/status?dead"),
    ):
        yield tag("li", tag("a", text, href=address, aria_current="page" if here == name else None))


def _freshness(at_ms: int) -> Markup:
    return tag(
        "p",
        tag("span", "As of ", when(at_ms), id="now", data_live=True),
        tag("strong", badge("bad", "Not up to date"), id="stale", role="alert", hidden=True),
        # Shown by the script; without it there is nothing to pause.
        tag("button", "Pause", id="pause", type="button", hidden=True, aria_pressed="false"),
        class_="fresh",
    )


def section(title: str, missing: str, *content: object, id_: str) -> Markup:
    """A part of the page under its heading; where `missing` says why there is none, that instead."""
    inside = (tag("p", badge("bad", "Unknown"), f" {missing}"),) if missing else content
    heading = f"{id_}-title"
    return tag(
        "section", tag("h2", title, id=heading), *inside, id=id_, data_live=True, aria_labelledby=heading
    )


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "None."
) -> Markup:
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
    if not lines:
        return note(empty)
    inside = tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *lines)
    # Scrolls by itself where the screen is narrow; reachable by keyboard, as whatever scrolls must be.
    return tag("div", tag("table", *inside), class_="scroll", tabindex=0, role="region", aria_label=caption)


def figure(
    name: str, value: str, text: str, *, tone: str = "", meter: tuple[int, int] | None = None
) -> Markup:
    """One key figure."""
    bar = meter and tag("meter", value=meter[0], max=meter[1], high=meter[1] * 0.9, aria_label=text)
    return tag(
        "div",
        tag("dt", name),
        tag("dd", tag("strong", value), bar, tag("small", text)),
        class_=f"figure {'unknown' if value == UNKNOWN else tone}".strip(),
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


def message_link(stream: str, entry_id: str) -> Markup:
    """A message's ID, leading to its story."""
    return link(f"/status?id={quote(f'{stream}:{entry_id}', safe='')}", mono(entry_id))


def when(unix_ms: int, *, exact: bool = False) -> Markup:
    """A point in time."""
    return tag("time", clock(unix_ms, exact=exact), datetime=format_rfc3339(unix_ms))


def ago(rfc3339: str, now_ms: int) -> Markup:
    """How long ago something was, with the point in time behind it."""
    try:
        seconds = (now_ms - parse_rfc3339(rfc3339)) / 1000
    except ValueError:
        return tag("span", rfc3339)
    return tag("time", f"{duration(max(0.0, seconds))} ago", datetime=rfc3339, title=rfc3339)
