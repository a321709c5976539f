"""Renders the second view of the status page: the search for a message, and its story.

Decides nothing; everything that came from a request, or is searched for, is escaped.
"""

from collections.abc import Iterable

from worker.adapters.redis.lookback import Story
from worker.core.model import Outcome, Record
from worker.runtime.statuspage.frame import badge, frame, link, mono, section, verdict_badge, when
from worker.runtime.statuspage.html import Markup, join, tag
from worker.runtime.statuspage.view import Found
from worker.runtime.statuspage.words import duration

Fact = tuple[str, object]
"""What is told, and its value; one without a value is left out."""


def found(view: Found) -> str:
    """The search, and what it found. This view never reloads: that would take away what is being typed."""
    return frame(
        "Find a message",
        view.worker,
        view.version,
        view.at_ms,
        _search(view),
        *(_story(story, view.job_urls) for story in view.stories),
        refresh="none",
    )


def _search(view: Found) -> Markup:
    box = tag(
        "input",
        id="id",
        name="id",
        value=view.sought,
        type="search",
        autofocus=not view.sought,
        required=True,
        autocomplete="off",
        spellcheck="false",
        placeholder="1719999999999-0",
        aria_describedby="how",
    )
    how = "As XADD returned it, or with its stream: requests:1719999999999-0"
    return tag(
        "form",
        tag("label", "Message ID", for_="id"),
        box,
        tag("button", "Find", type="submit"),
        tag("p", how, id="how", class_="note"),
        _nothing_found(view),
        action="/status",
        method="get",
        role="search",
    )


def _nothing_found(view: Found) -> Markup | None:
    if view.fault:
        return tag("p", badge("bad", "Not told"), f" {view.fault}", role="alert")
    if view.sought and not view.stories:
        text = " Neither the streams nor the ledger know this message. It may have been settled long ago."
        return tag("p", badge("warn", "Unknown"), text, role="alert")
    return None


def _story(story: Story, job_urls: dict[str, str]) -> Markup:
    title = f"Message {story.key}"
    record = story.record
    if record is None:
        return section(title, "", tag("p", badge("warn", "waiting"), " No worker has taken it up yet."))
    facts = [
        *_how_it_stands(record),
        *_outcome(record.outcome),
        *_job(record, job_urls),
        *_who(story, record),
        *_times(story, record),
    ]
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    return section(title, "", tag("dl", *rows, class_="facts"))


def _how_it_stands(record: Record) -> Iterable[Fact]:
    yield "State", badge("plain", record.phase.value)
    yield "Last step told", record.shown
    yield "Being stopped as", record.stopping


def _outcome(outcome: Outcome | None) -> Iterable[Fact]:
    if outcome is None:
        return
    yield "Verdict", verdict_badge(outcome.verdict)
    yield "Exit code", "" if outcome.exit_code is None else str(outcome.exit_code)
    if outcome.error_code:
        yield "Error", join((mono(outcome.error_code), " ", outcome.error_message))


def _job(record: Record, job_urls: dict[str, str]) -> Iterable[Fact]:
    yield "Job", mono(record.routing.job)
    yield "Namespace", record.routing.namespace
    yield "Region", record.routing.region
    if record.job_id:
        yield "Dispatched job", link(job_urls.get(record.job_id, ""), mono(record.job_id))


def _who(story: Story, record: Record) -> Iterable[Fact]:
    worker = story.owner or (story.final.worker if story.final else "")
    yield "Worker", worker and mono(worker)
    yield "Attempt", str(record.attempt)
    yield "Owners that died on it", str(record.takeovers or "")
    yield "Correlation ID", record.routing.correlation_id
    yield "Tenant", record.routing.tenant


def _times(story: Story, record: Record) -> Iterable[Fact]:
    yield "Received", when(record.received_at_ms)
    for name, unix_ms in (
        ("Dispatched", record.dispatched_at_ms),
        ("Placed", record.placed_at_ms),
        ("Settled", story.finished_at_ms),
    ):
        yield name, when(unix_ms) if unix_ms else ""
    durations = story.final.data.get("durations") if story.final else None
    if isinstance(durations, dict):
        for name, seconds in durations.items():
            yield f"Duration: {name}", duration(seconds) if isinstance(seconds, int | float) else ""
