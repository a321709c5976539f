"""Reply entries: what a worker writes is what a consumer reads."""

import pytest

from worker.core.model import MessageKey, Outcome, Phase, Record, Routing, Verdict
from worker.core.reply import decode_reply, reply_fields

RECORD = Record(
    MessageKey("requests", "1-0"),
    Phase.FINISHED,
    token="1-0",
    routing=Routing(job="render", namespace="default", correlation_id="c-7"),
    attempt=1,
    job_id="render/dispatch-1-a",
    eval_id="e1",
    outcome=Outcome(Verdict.FAILED, 137, error_message="killed", evidence={"allocations": [{"id": "a1"}]}),
)


def entry(record: Record, kind: str, **more: object) -> dict[bytes, bytes]:
    parts = reply_fields(record, kind, at_ms=1_764_000_000_123, worker="w1", **more)  # type: ignore[arg-type]
    flat = [part.encode() for part in parts]
    return dict(zip(flat[::2], flat[1::2], strict=True)) | {b"seq": b"4"}


def test_a_final_reply_carries_verdict_and_evidence() -> None:
    reply = decode_reply(entry(RECORD, "result", ui_url="http://nomad/ui"), "9-0")

    assert (reply.type, reply.final, reply.seq, reply.entry_id) == ("result", True, 4, "9-0")
    assert (reply.verdict, reply.exit_code, reply.error_message) == (Verdict.FAILED, 137, "killed")
    assert reply.data == {"allocations": [{"id": "a1"}]}
    assert (reply.at, reply.worker, reply.ui_url) == ("2025-11-24T16:00:00.123Z", "w1", "http://nomad/ui")
    assert (reply.job, reply.dispatched_job_id, reply.correlation_id) == (
        "render",
        "render/dispatch-1-a",
        "c-7",
    )


def test_a_step_on_the_way_is_not_final_whatever_the_record_knows() -> None:
    reply = decode_reply(entry(RECORD, "running", data={"node": "n1"}))

    assert (reply.final, reply.verdict, reply.data) == (False, None, {"node": "n1"})


def test_fields_of_later_versions_are_ignored_and_other_entries_refused() -> None:
    assert decode_reply(entry(RECORD, "result") | {b"novel": b"1"}).type == "result"
    with pytest.raises(ValueError, match="version 1"):
        decode_reply({b"v": b"2", b"type": b"result"})
