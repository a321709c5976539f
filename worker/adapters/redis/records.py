"""Ledger hashes to and from records: the stored names of a record's fields.

Knows nothing of Redis commands. The stored form has a version; a newer one is left alone.
"""

from collections.abc import Sequence

import msgspec

from worker.core.model import LEDGER_VERSION, MessageKey, Outcome, Phase, Record, Routing, Run, Verdict
from worker.errors import RecordUnreadable


def routing_fields(token: str, routing: Routing) -> list[str]:
    """Fields and values that admission stores, flat; empty ones are left out."""
    fields = {
        "token": token,
        "job": routing.job,
        "namespace": routing.namespace,
        "region": routing.region,
        "reply_to": routing.reply_to,
        "correlation_id": routing.correlation_id,
        "tenant": routing.tenant,
        "detach": "1" if routing.detach else "",
        "timeout_seconds": "" if routing.timeout_seconds is None else f"{routing.timeout_seconds:g}",
        "traceparent": routing.traceparent,
        "idempotency_key": routing.idempotency_key,
    }
    return [part for name, value in fields.items() if value or name == "token" for part in (name, value)]


def outcome_fields(record: Record, reply_stream: str) -> list[str]:
    """Fields and values that settling stores, flat: enough to answer for the message long after."""
    outcome = record.outcome
    if outcome is None:
        message = "a record without an outcome cannot be settled"
        raise ValueError(message)
    fields = {
        "v": str(LEDGER_VERSION),
        "verdict": outcome.verdict.value,
        "exit_code": "" if outcome.exit_code is None else str(outcome.exit_code),
        "error_code": outcome.error_code,
        "error_message": outcome.error_message,
        "reply_stream": reply_stream,
        "job": record.routing.job,
        "namespace": record.routing.namespace,
        "child": record.job_id,
        "attempt": str(record.attempt),
        "runs": runs_json(record.runs) if record.runs else "",
    }
    return [part for name, value in fields.items() if value for part in (name, value)]


def runs_json(runs: Sequence[Run]) -> str:
    """Runs that ended, as one field holds them."""
    return msgspec.json.encode(runs).decode()


def decode_record(key: MessageKey, flat: Sequence[bytes] | dict[bytes, bytes]) -> Record:
    """A record from HGETALL's answer, a flat list (RESP2, scripts) or a map (RESP3).

    Raises:
        RecordUnreadable: written by a newer version.
    """
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    stored = {name.decode(): value.decode(errors="replace") for name, value in pairs}
    if stored.get("v") != str(LEDGER_VERSION):
        message = f"the ledger of {key} has version {stored.get('v', '')!r}, not {LEDGER_VERSION}"
        raise RecordUnreadable(message)

    def text(name: str) -> str:
        return stored.get(name, "")

    def number(name: str) -> int:
        return int(stored.get(name) or "0")

    return Record(
        key=key,
        phase=Phase(stored["state"]),
        token=text("token"),
        routing=Routing(
            job=text("job"),
            namespace=text("namespace"),
            region=text("region"),
            reply_to=text("reply_to"),
            correlation_id=text("correlation_id"),
            tenant=text("tenant"),
            detach=bool(text("detach")),
            timeout_seconds=float(stored["timeout_seconds"]) if "timeout_seconds" in stored else None,
            traceparent=text("traceparent"),
            idempotency_key=text("idempotency_key"),
        ),
        fence=number("fence"),
        attempt=number("attempt"),
        takeovers=number("takeovers"),
        seq=number("seq"),
        job_id=text("child"),
        eval_id=text("eval_id"),
        received_at_ms=number("received_at"),
        intended_at_ms=number("intended_at"),
        dispatched_at_ms=number("dispatched_at"),
        placed_at_ms=number("placed_at"),
        quarantine_until_ms=number("quarantine_until"),
        shown=text("shown"),
        stopping=text("stopping"),
        picked_at_ms=number("picked"),
        cancel=bool(text("cancel")),
        runs=_runs(stored),
        retry_at_ms=number("retry_at"),
        outcome=_outcome(stored),
        reply_id=text("reply_id"),
    )


def _runs(stored: dict[str, str]) -> tuple[Run, ...]:
    return msgspec.json.decode(stored["runs"], type=tuple[Run, ...]) if stored.get("runs") else ()


def _outcome(stored: dict[str, str]) -> Outcome | None:
    if "verdict" not in stored:
        return None
    return Outcome(
        verdict=Verdict(stored["verdict"]),
        exit_code=int(stored["exit_code"]) if "exit_code" in stored else None,
        error_code=stored.get("error_code", ""),
        error_message=stored.get("error_message", ""),
    )
