"""The published schemas describe what is really read and written."""

import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.keys import Keys
from worker.core.model import MessageKey, Outcome, Phase, Record, Request, Routing, Verdict
from worker.core.reply import Reply, reply_fields
from worker.core.request import Limits, decode_request, encode_request
from worker.core.schema import ReplyEntry, RequestEntry, reply_schema, request_schema

LIMITS = Limits(Keys("{dispatch}"))
ROUTING = Routing("render", "prod", "eu", "", "corr-1", "team", timeout_seconds=3.0)


def as_text(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def test_the_request_schema_names_every_field_that_is_read() -> None:
    read = {field.name.removesuffix("_ms") for field in dataclasses.fields(Request)} | {"v"}

    assert set(request_schema()["properties"]) == read
    assert request_schema()["required"] == ["job"]


def test_the_reply_schema_names_every_field_that_is_written() -> None:
    written = {field.name for field in dataclasses.fields(Reply)} - {"entry_id"} | {"v"}

    assert set(reply_schema()["properties"]) == written


@given(
    request=st.builds(
        Request,
        job=st.from_regex(r"\A[a-z]{1,9}\Z"),
        payload=st.just(b"payload"),
        meta=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        priority=st.none() | st.integers(1, 32_767),
        detach=st.booleans(),
        correlation_id=st.from_regex(r"\A[a-z]{0,9}\Z"),
        deadline_ms=st.none() | st.integers(0, 4_000_000_000_000),
        timeout_seconds=st.none() | st.floats(0.1, 1e6),
    )
)
def test_every_request_a_client_writes_fits_the_schema_and_is_read_back(request: Request) -> None:
    fields = encode_request(request)

    msgspec.convert(as_text(fields), RequestEntry)

    assert decode_request(fields, LIMITS).job == request.job


@pytest.mark.parametrize(
    "faulty",
    [
        {},
        {"job": ""},
        {"job": "a b"},
        {"job": "a", "v": "2"},
        {"job": "a", "priority": "0"},
        {"job": "a", "deadline": "tomorrow"},
        {"job": "a", "detach": "maybe"},
        {"job": "a" * 2049},
    ],
)
def test_what_the_worker_rejects_does_not_fit_the_schema(faulty: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(faulty, RequestEntry)
    with pytest.raises(Exception, match="field"):
        decode_request({name.encode(): value.encode() for name, value in faulty.items()}, LIMITS)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_reply_the_worker_writes_fits_the_schema(verdict: Verdict) -> None:
    outcome = Outcome(verdict, 137, "nomad.job_unknown", "text", {"allocations": []})
    record = Record(
        MessageKey("requests", "1-0"), Phase.FINISHED, "1-0", ROUTING, job_id="c", outcome=outcome
    )

    parts = reply_fields(record, "result", at_ms=1, worker="w-1", ui_url="https://nomad.example/ui")
    flat = [part.encode() for part in parts]
    entry = msgspec.convert(as_text(dict(zip(flat[::2], flat[1::2], strict=True))) | {"seq": "3"}, ReplyEntry)

    assert (entry.verdict, entry.final, entry.exit_code) == (verdict, "1", "137")


def test_the_schemas_are_json_and_refer_only_to_what_they_hold() -> None:
    for schema in (request_schema(), reply_schema()):
        text = json.dumps(schema)

        assert text.count("#/$defs/") == len(schema.get("$defs", {}))
