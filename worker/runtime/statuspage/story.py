"""Renders the view of one message: its way so far, what is known of it, and what can be done about it.

Decides nothing; everything that came from a request, or is searched for, is escaped.
"""

from collections.abc import Iterable

from worker.adapters.redis.lookback import DeadLetter, Story
from worker.core.instants import entry_time_ms
from worker.core.model import MessageKey, Outcome, Phase, Record
from worker.runtime.statuspage.actions import Told
from worker.runtime.statuspage.forms import commands, form
from worker.runtime.statuspage.frame import (
    WELL,
    Tone,
    badge,
    frame,
    link,
    mono,
    note,
    section,
    table,
    verdict_badge,
    when,
)
from worker.runtime.statuspage.html import Markup, join, tag
from worker.runtime.statuspage.view import Found
from worker.runtime.statuspage.words import duration

Fact = tuple[str, object]
"""What is told, and its value; one without a value is left out."""

_TOLD: dict[str, tuple[Tone, str, str]] = {
    Told.PREVENTED: ("good", "Cancelled", "It will not be dispatched any more."),
    Told.ORDERED: ("good", "Cancelling", "Its job is being stopped; the result follows."),
    Told.TOO_LATE: ("warn", "Too late", "It had ended before; its result stands."),
    Told.REQUEUED: (
        "good",
        "Requeued",
        "The dead letter is a new request now, with an ID of its own: this one.",
    ),
    Told.DROPPED: ("good", "Dropped", "The dead letter is gone for good."),
}


def found(view: Found) -> str:
    """The search, and what it found."""
    return frame(
        "Find a message" if not view.stories else "One message",
        view.worker,
        view.version,
        view.at_ms,
        _banner(view),
        *(part for story in view.stories for part in _story(view, story)),
        here="message",
        sought=view.sought,
    )


def _banner(view: Found) -> Markup | None:
    tone: Tone
    if view.refused:
        tone, word, text = "bad", "Not done", view.refused
    elif view.told in _TOLD:
        tone, word, text = _TOLD[view.told]
    elif view.fault:
        tone, word, text = "bad", "Not told", view.fault
    elif view.sought and not view.stories:
        tone, word = "warn", "Unknown"
        text = "Neither the streams nor the ledger know this message. It may have been settled long ago."
    elif not view.sought:
        tone, word, text = "plain", "No ID", "Put a message ID into the field above, as XADD returned it."
    else:
        return None
    return tag("div", tag("p", badge(tone, word), f" {text}"), class_=f"state {tone}", role="alert")


def _story(view: Found, story: Story) -> Iterable[Markup]:
    record, name = story.record, f"message-{story.key.stream}"
    title = f"Message {story.key}"
    if record is None:
        waiting = tag("p", badge("warn", "waiting"), " No worker has taken it up yet.")
        yield section(title, "", waiting, id_=name)
    else:
        facts = [
            *_outcome(record.outcome),
            *_how_it_stands(record),
            *_job(record, view.job_urls),
            *_who(story, record),
        ]
        rows = [
            tag("div", tag("dt", fact), tag("dd", value), class_="wide" if fact == "Error" else None)
            for fact, value in facts
            if value
        ]
        yield section(title, "", tag("dl", *rows, class_="facts"), id_=name)
        yield section("Its way, in UTC", "", *_way(story, record), id_=f"way-{story.key.stream}")
        if record.runs:
            yield section("Earlier runs", "", _runs(record), id_=f"runs-{story.key.stream}")
    if (actions := _actions(view, story)) is not None:
        yield actions


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


def _way(story: Story, record: Record) -> Iterable[Markup]:
    """The steps with their times, and how long each took after the one before."""
    outcome = record.outcome
    steps = [
        ("Sent", entry_time_ms(story.key.id)),
        ("Received", record.received_at_ms),
        ("Its turn", record.picked_at_ms),
        ("Dispatched", record.dispatched_at_ms),
        ("Placed", record.placed_at_ms),
        ("Settled", story.finished_at_ms),
    ]
    told = [(name, unix_ms) for name, unix_ms in steps if unix_ms]
    bad = bool(outcome and outcome.verdict not in WELL and story.finished_at_ms)
    lines = []
    for at, (name, unix_ms) in enumerate(told):
        after = f"after {duration(max(0, unix_ms - told[at - 1][1]) / 1000)}" if at else None
        done = "ended" if bad and name == "Settled" else "done"
        lines.append(tag("li", tag("b", name), when(unix_ms, exact=True), tag("small", after), class_=done))
    yield tag("ol", *lines, class_="way")
    durations = story.final.data.get("durations") if story.final else None
    if isinstance(durations, dict):
        words = [
            f"{name} {duration(seconds)}"
            for name, seconds in sorted(durations.items(), key=_in_order)
            if isinstance(seconds, int | float)
        ]
        yield note(f"By its result: {', '.join(words)}.")


def _runs(record: Record) -> Markup:
    return table(
        "Each was followed by another, as the policy says",
        ("Attempt", "Verdict", "Exit code|n", "Error", "Dispatched job", "Ended"),
        [
            (
                str(run.attempt),
                verdict_badge(run.verdict),
                "-" if run.exit_code is None else str(run.exit_code),
                run.error_message,
                mono(run.job_id),
                when(run.ended_at_ms),
            )
            for run in record.runs
        ],
    )


def _in_order(named: tuple[str, object]) -> int:
    order = ("queue", "placement", "run", "total")
    return order.index(named[0]) if named[0] in order else len(order)


def _actions(view: Found, story: Story) -> Markup | None:
    letter = view.letters.get(story.key)
    open_ = story.record is None or story.record.phase is not Phase.SETTLED
    if not open_ and letter is None:
        return None
    inside = (
        form(story.key, letter, cancel=open_) if view.may_act else commands(story.key, letter, cancel=open_)
    )
    # Not kept up to date: what is being typed there must not be taken away.
    heading = f"act-{story.key.stream}"
    return tag(
        "section", tag("h2", _acted_on(story.key, letter), id=heading), inside, aria_labelledby=heading
    )


def _acted_on(key: MessageKey, letter: DeadLetter | None) -> str:
    return f"Dead letter {letter.id}" if letter else f"Stop {key}"
