"""Request entries: what is accepted comes back whole, what is not is refused with a stable code."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.keys import Keys
from worker.core.model import Request
from worker.core.request import Limits, decode_request, encode_request, routing_of, salvage_routing
from worker.errors import RequestRejected

LIMITS = Limits(Keys("{dispatch}"), namespaces=("default", "batch"), regions=("", "eu"), max_meta_bytes=200)

NAMES = (
    *(b"v", b"payload", b"meta", b"namespace", b"region", b"priority", b"id_prefix", b"detach", b"reply_to"),
    *(b"correlation_id", b"tenant", b"deadline", b"not_before", b"timeout_seconds", b"idempotency_key"),
)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)
INSTANTS = st.integers(0, 4_000_000_000).map(lambda seconds: seconds * 1000)
REQUESTS = st.builds(
    Request,
    job=st.from_regex(r"[A-Za-z0-9_.\-/?%]{1,40}", fullmatch=True),
    payload=st.binary(max_size=200),
    meta=st.dictionaries(st.text("abc_", min_size=1, max_size=5), st.text("xyz= é", max_size=5), max_size=4),
    namespace=st.sampled_from([None, "default", "batch"]),
    region=st.sampled_from([None, "eu"]),
    priority=st.none() | st.integers(1, 32_767),
    id_prefix=TEXT,
    detach=st.booleans(),
    reply_to=st.sampled_from(["", "billing", "a.b-c_1"]),
    correlation_id=TEXT,
    tenant=TEXT,
    deadline_ms=st.none() | INSTANTS,
    not_before_ms=st.none() | INSTANTS,
    timeout_seconds=st.none() | st.integers(1, 100_000).map(float),
    idempotency_key=TEXT,
    traceparent=TEXT,
)


@given(REQUESTS)
def test_what_is_encoded_is_decoded_to_the_same_request(request: Request) -> None:
    assert decode_request(encode_request(request), LIMITS) == request


@given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=60), max_size=12))
def test_no_entry_whatever_it_holds_fails_in_any_other_way(fields: dict[bytes, bytes]) -> None:
    with suppress(RequestRejected):
        decode_request(fields, LIMITS)
    salvage_routing(fields, LIMITS)


@given(st.sampled_from(NAMES), st.binary(max_size=80))
def test_any_one_field_may_hold_anything(name: bytes, value: bytes) -> None:
    with suppress(RequestRejected):
        decode_request({b"job": b"render", name: value}, LIMITS)


@pytest.mark.parametrize(
    ("fields", "code", "tells"),
    [
        ({}, "request.field_missing", "job"),
        ({b"job": b""}, "request.field_missing", "job"),
        ({b"job": b"a b"}, "request.field_invalid", "white space"),
        ({b"job": b"a\x00b"}, "request.field_invalid", "control"),
        ({b"job": b"\xff"}, "request.field_invalid", "UTF-8"),
        ({b"job": b"x" * 3000}, "request.field_invalid", "3000 bytes"),
        ({b"job": b"r", b"v": b"2"}, "request.version_unknown", "version 1"),
        ({b"job": b"r", b"payload": b"x" * 16_385}, "request.payload_too_large", "16385"),
        ({b"job": b"r", b"meta": b"[1]"}, "request.meta_invalid", "strings"),
        ({b"job": b"r", b"meta": b'{"a":1}'}, "request.meta_invalid", "strings"),
        ({b"job": b"r", b"meta": b'{"a":'}, "request.meta_invalid", "JSON"),
        ({b"job": b"r", b"meta": b'{"a":"' + b"x" * 300 + b'"}'}, "request.meta_too_large", "200"),
        ({b"job": b"r", b"meta": b'{"a":"\xff"}'}, "request.meta_invalid", "strings"),
        ({b"job": b"r", b"priority": b"0"}, "request.field_invalid", "priority"),
        ({b"job": b"r", b"priority": b"1.5"}, "request.field_invalid", "priority"),
        ({b"job": b"r", b"priority": "٣".encode()}, "request.field_invalid", "priority"),
        ({b"job": b"r", b"detach": b"maybe"}, "request.field_invalid", "detach"),
        ({b"job": b"r", b"deadline": b"tomorrow"}, "request.field_invalid", "RFC 3339"),
        ({b"job": b"r", b"deadline": b"2026-11-24T01:48:02"}, "request.field_invalid", "offset"),
        ({b"job": b"r", b"timeout_seconds": b"-1"}, "request.field_invalid", "positive"),
        ({b"job": b"r", b"timeout_seconds": b"nan"}, "request.field_invalid", "positive"),
        ({b"job": b"r", b"namespace": b"secret"}, "request.place_not_configured", "namespace"),
        ({b"job": b"r", b"region": b"mars"}, "request.place_not_configured", "region"),
        ({b"job": b"r", b"reply_to": b"../dead"}, "request.reply_to_invalid", "reply_to"),
        ({b"job": b"r", b"reply_to": b"{dispatch}:dead"}, "request.reply_to_invalid", "reply_to"),
        ({b"job": b"r", b"reply_to": b"{other}:replies:x"}, "request.reply_to_invalid", "reply_to"),
    ],
)
def test_each_fault_has_its_code_and_says_what_is_wrong(
    fields: dict[bytes, bytes], code: str, tells: str
) -> None:
    with pytest.raises(RequestRejected, match=tells) as caught:
        decode_request(fields, LIMITS)

    assert caught.value.code == code


def test_a_fault_never_repeats_what_the_field_holds() -> None:
    for name in (
        b"namespace",
        b"region",
        b"reply_to",
        b"priority",
        b"deadline",
        b"timeout_seconds",
        b"detach",
    ):
        with pytest.raises(RequestRejected) as caught:
            decode_request({b"job": b"r", name: b"/canary/"}, LIMITS)
        assert "canary" not in str(caught.value)


def test_json_of_any_depth_is_refused_and_not_fatal() -> None:
    deep = b'{"a":' * 20 + b'"x"' + b"}" * 20
    with pytest.raises(RequestRejected):
        decode_request({b"job": b"r", b"meta": deep}, LIMITS)
    with pytest.raises(RequestRejected):
        decode_request({b"job": b"r", b"meta": b"[" * 100_000}, Limits(LIMITS.keys, max_meta_bytes=200_000))


def test_limits_hold_to_the_byte() -> None:
    assert len(decode_request({b"job": b"r", b"payload": b"x" * 16_384}, LIMITS).payload) == 16_384
    value = "x" * (200 - len(msgspec.json.encode({"a": ""})))
    assert decode_request({b"job": b"r", b"meta": msgspec.json.encode({"a": value})}, LIMITS).meta == {
        "a": value
    }


def test_routing_fills_in_the_workers_defaults() -> None:
    routing = routing_of(Request(job="render"), LIMITS)

    assert routing.place == ("", "default")
    assert routing_of(Request(job="render", namespace="batch", region="eu"), LIMITS).place == ("eu", "batch")


def test_a_faulty_entry_is_answered_where_its_sender_reads() -> None:
    fields = {
        b"v": b"9",
        b"job": b"\xff",
        b"reply_to": b"billing",
        b"correlation_id": b"c-7",
        b"tenant": b"\xff\xfe",
    }

    routing = salvage_routing(fields, LIMITS)

    assert (routing.reply_to, routing.correlation_id, routing.tenant, routing.job) == (
        "billing",
        "c-7",
        "",
        "",
    )


def test_reply_to_may_be_given_as_the_whole_key() -> None:
    assert decode_request({b"job": b"r", b"reply_to": b"{dispatch}:replies:x"}, LIMITS).reply_to == "x"
    assert decode_request({b"job": b"r", b"reply_to": b"{dispatch}:replies"}, LIMITS).reply_to == ""
