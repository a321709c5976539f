"""Renders two views of the status page: what is going on, and the dead letters.

Decides nothing; every value was looked up before, and everything that came from a request is escaped.
"""

from collections.abc import Sequence

from worker.adapters.redis.survey import WorkerSeen
from worker.core.pace import Brake
from worker.core.reply import Reply
from worker.runtime.statuspage.frame import (
    Tone,
    ago,
    badge,
    figure,
    frame,
    link,
    message_link,
    mono,
    note,
    section,
    table,
    verdict_badge,
)
from worker.runtime.statuspage.html import Markup, join, tag
from worker.runtime.statuspage.view import DEAD_LETTERS_SHOWN, Dead, InHand, Overview
from worker.runtime.statuspage.words import UNKNOWN, count, duration

NOTHING = "-"
_BRAKES = {
    Brake.NONE: "",
    Brake.LATENCY: ": Nomad is slow to answer",
    Brake.ERRORS: ": Nomad answers with errors",
    Brake.EVALUATIONS: ": Nomad has many waiting",
    Brake.CHILDREN: ": a job has many children",
}


def overview(view: Overview) -> str:
    """What is going on."""
    return frame(
        "Dispatch worker",
        view.worker,
        view.version,
        view.at_ms,
        _state(view),
        _figures(view),
        tag("div", _streams(view), _workers(view), class_="pair"),
        _in_flight(view),
        tag("div", _results(view), _dead_by_reason(view), class_="pair"),
        here="overview",
    )


def dead_letters(view: Dead) -> str:
    """The last dead letters, one by one."""
    letters = view.letters.value or ()
    partial = view.total is not None and view.total > len(letters)
    shown = f"The last {count(len(letters))} of {count(view.total)}" if partial else "All of them"
    return frame(
        "Dead letters",
        view.worker,
        view.version,
        view.at_ms,
        section(
            "Messages that wait for a person",
            view.letters.missing,
            table(
                f"{shown}, the newest first",
                ("Message", "Verdict", "Why", "Job", "When|n"),
                [
                    (
                        message_link(letter.key.stream, letter.key.id),
                        badge("bad", letter.verdict or UNKNOWN),
                        join((mono(letter.code), tag("small", letter.message))),
                        letter.job or UNKNOWN,
                        ago(letter.at, view.at_ms),
                    )
                    for letter in letters
                ],
                empty="None: every message was dispatched and found its end.",
            ),
            tag("p", "All of them: ", mono("dispatch-worker dlq list"), class_="note") if letters else None,
            id_="letters",
        ),
        here="dead",
    )


def _state(view: Overview) -> Markup:
    tone: Tone
    if not view.not_ready:
        tone, word, text = "good", "Ready", "This worker takes new work."
    elif view.draining:
        tone, word, text = "warn", "Leaving", "It reads nothing new; its messages go to other replicas."
    else:
        tone, word, text = "bad", "Not ready", "It takes no new work now:"
    reasons = [tag("li", tag("b", name), f": {reason}") for name, reason in view.not_ready.items()]
    return tag(
        "div",
        tag("p", badge(tone, word), f" {text}"),
        reasons and tag("ul", *reasons),
        id="state",
        class_=f"state {tone}",
        data_live=True,
        role="status",
    )


def _figures(view: Overview) -> Markup:
    backlog = view.backlog.value
    streams = list(backlog.streams.values()) if backlog else []
    lags = [stream.lag for stream in streams]
    lag = sum(known for known in lags if known is not None) if streams and None not in lags else None
    queued = sum((stream.queued or 0) + (stream.delayed or 0) for stream in streams)
    unread = "entries no worker was given yet"
    ages = [stream.oldest_pending_seconds for stream in streams if stream.oldest_pending_seconds is not None]
    workers, dead = (backlog.workers, backlog.dead_letters) if backlog else (None, None)
    full = view.in_flight >= view.in_flight_limit
    return tag(
        "dl",
        figure(
            "Unread",
            count(lag),
            f"{unread}; {count(queued)} more wait for their turn or time" if queued else unread,
            tone="warn" if lag and full else "",
        ),
        figure("Oldest open", duration(max(ages, default=None)), "message given to a worker, not settled"),
        figure(
            "In flight here",
            count(view.in_flight),
            f"of at most {count(view.in_flight_limit)}",
            tone="warn" if full else "",
            meter=(view.in_flight, view.in_flight_limit),
        ),
        figure(
            "Dispatches at once",
            count(view.dispatch_limit),
            f"of at most {count(view.dispatch_most)}{_BRAKES[view.brake]}",
            tone="warn" if view.brake is not Brake.NONE else "",
        ),
        figure("Workers alive", count(workers), "replicas of this group", tone="bad" if workers == 0 else ""),
        figure("Dead letters", count(dead), "waiting for a person", tone="bad" if dead else ""),
        id="figures",
        class_="figures",
        data_live=True,
        aria_label="Key figures",
    )


def _streams(view: Overview) -> Markup:
    streams = view.backlog.value.streams if view.backlog.value else {}
    return section(
        "Streams",
        view.backlog.missing,
        table(
            "Request streams, shared by all replicas",
            ("Stream", "Unread|n", "Queued|n", "Delayed|n", "In hand|n", "Oldest|n"),
            [
                (
                    mono(name),
                    count(stream.lag),
                    count(stream.queued),
                    count(stream.delayed),
                    count(stream.in_hand),
                    duration(stream.oldest_pending_seconds) if stream.pending != 0 else NOTHING,
                )
                for name, stream in streams.items()
            ],
        ),
        id_="streams",
    )


def _in_flight(view: Overview) -> Markup:
    left_out = view.in_flight - len(view.messages)
    return section(
        "Jobs in flight on this worker",
        "",
        table(
            "The oldest first",
            ("Message", "State", "Age|n", "Job", "Stream", "Dispatched job"),
            [
                (
                    message_link(one.key.stream, one.key.id),
                    _in_hand_state(one),
                    duration(one.age_seconds),
                    one.job or UNKNOWN,
                    one.key.stream,
                    link(one.job_url, mono(one.dispatched_job_id)) if one.dispatched_job_id else NOTHING,
                )
                for one in view.messages
            ],
            empty="None: this worker has nothing in hand.",
        ),
        note(f"{count(left_out)} more are not shown.") if left_out > 0 else None,
        id_="flight",
    )


def _in_hand_state(one: InHand) -> Markup:
    words: list[object] = [badge("plain", one.state)]
    if one.stopping:
        words += [" ", badge("warn", f"being stopped: {one.stopping}")]
    if one.retries:
        words += [" ", badge("warn", f"{one.retries} tries failed")]
    return join(words)


def _results(view: Overview) -> Markup:
    return section(
        "Recent results",
        view.results.missing,
        table(
            "Newest first; of the shared reply stream",
            ("Message", "Verdict", "Exit code|n", "Job", "When|n"),
            [
                (
                    message_link(reply.stream, reply.id),
                    _verdict(reply),
                    NOTHING if reply.exit_code is None else str(reply.exit_code),
                    reply.job or UNKNOWN,
                    ago(reply.at, view.at_ms),
                )
                for reply in view.results.value or ()
            ],
            empty="None yet.",
        ),
        id_="results",
    )


def _verdict(reply: Reply) -> Markup:
    verdict = reply.verdict.value if reply.verdict else UNKNOWN
    code = reply.error_code
    # The code says more than the verdict only where it is not just its name again.
    more = tag("small", code) if code and code != f"job.{verdict}" else None
    return join((verdict_badge(reply.verdict), " ", more))


def _dead_by_reason(view: Overview) -> Markup:
    total = view.backlog.value.dead_letters if view.backlog.value else None
    letters = view.dead_letters.value or ()
    newest = {(letter.verdict, letter.code): letter.key for letter in reversed(letters)}
    partial = total is not None and total > len(letters) >= DEAD_LETTERS_SHOWN
    return section(
        "Dead letters",
        view.dead_letters.missing,
        table(
            f"By reason, of the last {count(len(letters))}" if partial else "By reason",
            ("Reason", "Count|n", "Newest|n"),
            [
                (
                    join((badge("bad", verdict), " ", tag("small", code))),
                    count(number),
                    message_link(*newest[verdict, code]),
                )
                for verdict, code, number in view.dead_by_reason
            ],
        ),
        tag("p", tag("a", "One by one", href="/status?dead"), class_="note") if letters else None,
        id_="dead",
    )


def _workers(view: Overview) -> Markup:
    return section(
        "Workers",
        view.workers.missing,
        table(
            "Replicas and their leases",
            ("Name", "Lease", "Version"),
            [_worker(worker, view.worker) for worker in view.workers.value or ()],
        ),
        id_="workers",
    )


def _worker(worker: WorkerSeen, this: str) -> Sequence[object]:
    left = worker.lease_remaining_seconds
    lease = (
        join((badge("good", "alive"), tag("small", f"for {duration(left)} more")))
        if left > 0
        else join((badge("bad", "over"), tag("small", f"for {duration(-left)}; others take its messages")))
    )
    name = join((mono(worker.name), tag("small", "this one") if worker.name == this else None))
    return name, lease, worker.about.get("version", UNKNOWN)
