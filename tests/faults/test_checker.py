"""The checker sees each thing that must not be: evidence with one fault, and the sentence it must give."""

from dataclasses import replace

import pytest

from tests.faults.checker import Child, Evidence, Run, Told, violations
from worker.core.model import Verdict
from worker.core.reply import Reply

GOOD, BAD, FAULTY = "1-0", "2-0", "3-0"


def reply(
    message_id: str, seq: int, kind: str, verdict: str = "", job: str = "", code: int | None = None
) -> Reply:
    return Reply(
        kind,
        message_id,
        "requests",
        seq,
        final=kind == "result",
        dispatched_job_id=job,
        verdict=Verdict(verdict) if verdict else None,
        exit_code=code,
    )


RIGHT = Evidence(
    sent={
        GOOD: Told(0, 1.0, frozenset({"succeeded"})),
        BAD: Told(3, 1.0, frozenset({"failed"})),
        FAULTY: Told(None, verdicts=frozenset({"rejected"})),
    },
    replies=[
        reply(GOOD, 1, "accepted"),
        reply(GOOD, 2, "dispatched", job="a"),
        reply(BAD, 1, "accepted"),
        reply(GOOD, 3, "result", "succeeded", "a", 0),
        reply(BAD, 2, "result", "failed", "b", 3),
        reply(FAULTY, 1, "accepted"),
        reply(FAULTY, 2, "result", "rejected"),
    ],
    children=[Child("a", GOOD, (Run(0, 1.0),)), Child("b", BAD, (Run(3, 1.0),))],
    pending=0,
    lag=0,
    states={GOOD: "settled", BAD: "settled", FAULTY: "settled"},
)


def test_evidence_of_all_being_well_gives_no_sentence() -> None:
    assert violations(RIGHT) == []


def _without_final() -> Evidence:
    return replace(RIGHT, replies=RIGHT.replies[:-1])


def _finals_twice() -> Evidence:
    return replace(RIGHT, replies=[*RIGHT.replies, reply(GOOD, 4, "result", "succeeded", "a", 0)])


def _children(*children: Child) -> Evidence:
    return replace(RIGHT, children=children)


A, B = RIGHT.children
WRONG: dict[str, tuple[Evidence, str]] = {
    "no final": (_without_final(), "3-0 has 0 final replies"),
    "two finals": (_finals_twice(), "1-0 has 2 final replies"),
    "a final to nobody": (
        replace(RIGHT, replies=[*RIGHT.replies, reply("9-9", 1, "result", "rejected")]),
        "9-9, which was never sent",
    ),
    "a number twice": (
        replace(RIGHT, replies=[reply(GOOD, 1, "accepted"), *RIGHT.replies]),
        "1-0 are numbered [1, 1, 2, 3]",
    ),
    "a reply after the final": (
        replace(RIGHT, replies=[*RIGHT.replies, reply(FAULTY, 3, "running")]),
        "3-0 has a reply after its final one",
    ),
    "two jobs": (_children(A, B, Child("c", GOOD)), "2 jobs for the token '1-0'"),
    "a job of nobody": (_children(A, B, Child("c", "9-9")), "'9-9' that no message has"),
    "a job for what is faulty": (_children(A, B, Child("c", FAULTY)), "3-0, which can never be dispatched"),
    "success without a job": (_children(B), "1-0 is said to have succeeded"),
    "success of what never ran": (_children(Child("a", GOOD), B), "1-0 is said to have succeeded"),
    "success of what never ended": (
        _children(Child("a", GOOD, (Run(None, 0.0),)), B),
        "1-0 is said to have succeeded",
    ),
    "success with an exit code": (
        _children(Child("a", GOOD, (Run(1, 1.0),)), B),
        "1-0 is said to have succeeded",
    ),
    "success of what was killed early": (
        _children(Child("a", GOOD, (Run(0, 0.4),)), B),
        "1-0 is said to have succeeded",
    ),
    "another's job": (_children(Child("x", GOOD, A.runs), B), "1-0 is answered with a, its job is x"),
    "a job that never was": (_children(A), "2-0 is answered with b, which Nomad never made"),
    "another exit code": (
        replace(RIGHT, sent={**RIGHT.sent, BAD: Told(4, 1.0)}),
        "2-0 is said to have failed with 3",
    ),
    "another verdict": (
        replace(RIGHT, sent={**RIGHT.sent, BAD: Told(3, 1.0, frozenset({"timed_out"}))}),
        "2-0 came to failed",
    ),
    "something pending": (replace(RIGHT, pending=2), "2 entries are still pending"),
    "something unread": (replace(RIGHT, lag=1), "1 entries were never read"),
    "an open ledger": (replace(RIGHT, states={**RIGHT.states, GOOD: "running"}), "1-0 as running"),
    "no ledger": (replace(RIGHT, states={**RIGHT.states, GOOD: ""}), "1-0 as nothing"),
    "something left": (replace(RIGHT, left={"open orders to cancel": 1}), "1 open orders to cancel"),
}


@pytest.mark.parametrize(("evidence", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_each_thing_that_must_not_be_is_seen(evidence: Evidence, sentence: str) -> None:
    assert sentence in "\n".join(violations(evidence))
