"""Every answer recorded from a real server, and what it must mean to the worker."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.refusal import TEXT_LIMIT_CHARACTERS, refusal
from worker.errors import (
    ChildUnknown,
    JobNotParameterized,
    JobStopped,
    JobUnknown,
    MetaMissing,
    MetaUnpermitted,
    NomadBusy,
    NomadDenied,
    NomadNoLeader,
    NomadRefused,
    NomadTimeout,
    NomadUnavailable,
    PayloadForbidden,
    PayloadOversize,
    PayloadRequired,
    PriorityOutOfRange,
    RegionUnknown,
    Then,
    WorkerError,
)

RECORDED = Path(__file__).parent.parent / "data" / "nomad-transcripts"

MEANING: dict[str, type[WorkerError]] = {
    "unknown job": JobUnknown,
    "not parameterized": JobNotParameterized,
    "stopped parameterized job": JobStopped,
    "payload forbidden": PayloadForbidden,
    "no meta allowed at all": MetaUnpermitted,
    "payload required, not given": PayloadRequired,
    "payload required, empty string": PayloadRequired,
    "one required meta missing": MetaMissing,
    "both required meta missing (order of the list is random)": MetaMissing,
    "unpermitted key": MetaUnpermitted,
    "unpermitted keys win over missing ones (order random)": MetaUnpermitted,
    "payload of 16385 decoded bytes: refused": PayloadOversize,
    "payload of 3000000 decoded bytes": PayloadOversize,
    "invalid base64": NomadRefused,
    "base64 without padding": NomadRefused,
    "URL-safe base64": NomadRefused,
    "truncated JSON": NomadRefused,
    "not JSON": NomadRefused,
    "JSON array": NomadRefused,
    "no body at all": NomadRefused,
    "empty body": NomadRefused,
    "meta value not a string": NomadRefused,
    "meta not an object": NomadRefused,
    "priority wrong type": NomadRefused,
    "priority above maximum": PriorityOutOfRange,
    "priority negative": PriorityOutOfRange,
    "JobID in body differs from path": NomadRefused,
    "namespace that does not exist": JobUnknown,
    "region that does not exist": RegionUnknown,
    "Namespace in the body": JobUnknown,
    "wildcard namespace on a write": JobUnknown,
    "GET is not allowed": NomadRefused,
    "empty job id": NomadUnavailable,
    "1.2 MB URL: refused by the HTTP layer": NomadRefused,
    "unknown path": NomadUnavailable,
}


def exchanges(file: str) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = json.loads((RECORDED / file).read_text())["exchanges"]
    return [one for one in recorded if "request" in one and (one["response"].get("status") or 0) >= 300]


def answers(pattern: str) -> list[Any]:
    return [
        pytest.param(one, id=f"{file.name}: {one['note']}")
        for file in sorted(RECORDED.glob(pattern))
        for one in exchanges(file.name)
    ]


def read(exchange: dict[str, Any]) -> WorkerError:
    response = exchange["response"]
    return refusal(response["status"], response.get("body_raw") or "")


@pytest.mark.parametrize("exchange", answers("02-dispatch-errors.json"))
def test_a_recorded_dispatch_refusal_has_its_own_name(exchange: dict[str, Any]) -> None:
    assert type(read(exchange)) is MEANING[exchange["note"]]


def test_every_meaning_was_recorded() -> None:
    assert {one["note"] for one in exchanges("02-dispatch-errors.json")} == set(MEANING)


@pytest.mark.parametrize("exchange", answers("03-acl.json"))
def test_a_recorded_acl_refusal_pauses_the_worker_and_never_blames_the_message(
    exchange: dict[str, Any],
) -> None:
    error = read(exchange)

    if exchange["response"]["status"] == 403:
        assert type(error) is NomadDenied
        assert error.then is Then.PAUSE
    elif exchange["note"] == "unknown job with permission":
        assert type(error) is JobUnknown
    else:
        assert exchange["note"] == "bootstrap again"
        assert type(error) is NomadRefused


@pytest.mark.parametrize("exchange", answers("08-no-leader.json"))
def test_a_recorded_answer_without_a_leader_may_pass(exchange: dict[str, Any]) -> None:
    error = read(exchange)

    assert type(error) is NomadNoLeader
    assert error.then is Then.RETRY
    assert error.maybe_applied


def test_the_recorded_answers_around_a_leaders_death_may_pass() -> None:
    log = json.loads((RECORDED / "08-leader-loss-3-servers.json").read_text())["exchanges"][1]["log"]
    refused = [answer for answer in (one["answer"] for one in log) if answer[0] == 500]

    errors = [refusal(status, text) for status, text in refused]

    assert errors
    assert {type(error) for error in errors} == {NomadNoLeader}


def test_the_recorded_connection_limit_was_met_before_the_request_was_read() -> None:
    recorded = json.loads((RECORDED / "08-http-connection-limit-429.json").read_text())["exchanges"][1]
    text = recorded["raw_answer"].partition("\r\n\r\n")[2]

    error = refusal(429, text, retry_after_seconds=7.0)

    assert isinstance(error, NomadBusy)
    assert not error.maybe_applied
    assert error.retry_after_seconds == 7.0
    assert "\n" not in str(error)


@pytest.mark.parametrize("exchange", answers("06-*.json") + answers("07-*.json") + answers("10-*.json"))
def test_a_recorded_404_of_nomad_means_that_the_thing_is_gone(exchange: dict[str, Any]) -> None:
    error = read(exchange)

    if exchange["response"]["status"] == 404 and exchange["response"]["body_raw"] != "job source not found":
        assert type(error) is ChildUnknown


@pytest.mark.parametrize("prefix", ["rpc error: ", "rpc error: rpc error: ", "RPC Error:: 500,"])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("parameterized job not found", JobUnknown),
        ('Specified job "a" is stopped', JobStopped),
        ("Dispatch did not provide required meta keys: [a b]", MetaMissing),
        ("No path to region", RegionUnknown),
        ("No cluster leader", NomadNoLeader),
        ("Permission denied", NomadDenied),
        ("ACL token not found", NomadDenied),
        ("stream closed", NomadNoLeader),
        ("EOF", NomadNoLeader),
        ("something nobody has seen", NomadUnavailable),
    ],
)
def test_a_server_that_passed_the_request_on_changes_nothing(
    prefix: str, text: str, kind: type[WorkerError]
) -> None:
    assert type(refusal(500, prefix + text)) is kind


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (500, 'Specified job "x\\" is stopped" is not a parameterized job', JobNotParameterized),
        (500, 'Specified job "a\nb" is stopped', JobStopped),
        (500, "a log line that mentions: parameterized job not found, and goes on", NomadUnavailable),
        (500, "node is not the leader", NomadNoLeader),
        (500, "leadership lost while committing log", NomadNoLeader),
        (500, "stream closed", NomadUnavailable),
        (500, "", NomadUnavailable),
        (502, "<html>bad gateway</html>", NomadUnavailable),
        (503, "", NomadUnavailable),
        (504, "", NomadUnavailable),
        (401, "", NomadDenied),
        (408, "", NomadTimeout),
        (
            403,
            "Job registration, dispatch, and scale are disabled by the scheduler configuration",
            NomadDenied,
        ),
        (500, "failed to parse signed token: square/go-jose: compact JWS format", NomadDenied),
        (404, "<html>nginx</html>", NomadUnavailable),
        (413, "Request Entity Too Large", NomadRefused),
        (301, "", NomadUnavailable),
        (204, "", NomadUnavailable),
    ],
)
def test_an_answer_that_was_not_recorded(status: int, text: str, kind: type[WorkerError]) -> None:
    assert type(refusal(status, text)) is kind


@given(st.integers(500, 599), st.text())
def test_an_unknown_server_error_is_retried_and_may_have_been_applied(status: int, text: str) -> None:
    error = refusal(status, f"~{text}")

    assert isinstance(error, NomadUnavailable)
    assert error.maybe_applied


@given(st.integers(300, 599), st.text(max_size=5000))
def test_a_message_is_one_short_line(status: int, text: str) -> None:
    message = str(refusal(status, text * 3))

    assert len(message) < TEXT_LIMIT_CHARACTERS + 100
    assert message.isprintable() or not text.isprintable()
    assert len(message.splitlines()) == 1
