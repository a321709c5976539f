"""Labels stay within closed sets, counters begin at zero, and Prometheus's own linter is content."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.nomad.calls import Operation
from worker.core.backlog import Backlog, StreamBacklog
from worker.core.keys import SCOPES
from worker.core.model import MessageKey, Outcome, Phase, Place, Record, Routing, Verdict
from worker.errors import Fenced, NomadBusy, NotAllowed, RedisFull, RedisUnavailable
from worker.flow.instruments import Instruments
from worker.runtime.measured import measured
from worker.runtime.metrics import NAMED_JOBS, Local, Metrics

pytestmark = pytest.mark.anyio

PLACE = Place("", "default")


def made(local: Callable[[], Local] = Local) -> Metrics:
    return Metrics(["requests"], [PLACE], max_in_flight=500, version="1.2.3", revision="abc", local=local)


async def probe() -> Backlog:
    return Backlog({"requests": StreamBacklog(7, 9, 1.5, 4, 3, 60.0)}, 0, 1, dict.fromkeys(SCOPES, 2))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dispatch_worker_{name}", labels)


def settled(metrics: Instruments, job: str, outcome: Outcome, job_id: str = "child") -> None:
    record = Record(MessageKey("requests", "1-0"), Phase.SETTLED, "1-0", Routing(job=job), job_id=job_id)
    metrics.settled(record, outcome, 3.0)


def everything(metrics: Metrics, job: str, code: str) -> None:
    """Each kind of event once, with values from outside."""
    metrics.polled("requests")
    metrics.received("requests", 0.1)
    metrics.redelivered("requests", "taken_over")
    metrics.taken_over(2)
    metrics.dispatched(job, "created", 0.1)
    metrics.dispatched(job, code, 0.1)
    metrics.decided("requests", 0.1)
    metrics.children({job: 1})
    metrics.retried(code)
    metrics.let_go(code)
    for verdict in Verdict:
        settled(metrics, job, Outcome(verdict, error_code=code))
    metrics.duplicate_stopped()
    metrics.feed_opened(PLACE)
    metrics.feed_lost(PLACE, code)
    metrics.feed_read(PLACE, 3, 1)
    metrics.swept(1)
    for operation in Operation:
        metrics.nomad_answered(operation, "500", 0.1)
    metrics.nomad_answered(job, code, 0.1)
    metrics.redis_answered(job, code, 0.1)
    metrics.redis_answered("read", f"redis.{code}", 0.1)
    metrics.token_expires(1.0)


async def series(metrics: Metrics) -> list[str]:
    text = (await metrics.scrape(probe))[0].decode()
    return [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_own_linter_finds_nothing() -> None:
    metrics = made(lambda: Local({"render": 3}))
    everything(metrics, "render", NomadBusy.code)

    text, _ = asyncio.run(metrics.scrape(probe))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30, check=False
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_twenty_jobs_make_less_than_five_hundred_series() -> None:
    metrics = made(lambda: Local({f"job-{number}": 1 for number in range(20)}))

    for number in range(20):
        everything(metrics, f"job-{number}", NomadBusy.code)

    assert len(await series(metrics)) < 500


@given(job=st.text(min_size=1), code=st.text())
async def test_no_text_from_outside_makes_an_unknown_job_or_code_a_label(job: str, code: str) -> None:
    metrics = made()
    metrics.dispatched(job, f"code {code}", 0.1)
    settled(metrics, job, Outcome(Verdict.REJECTED, error_code=code), job_id="")
    metrics.retried(f"code {code}")
    metrics.nomad_answered(f"operation {job}", f"code {code}", 0.1)
    first = await series(metrics)

    metrics.dispatched(f"{job}!", f"code {code}!", 0.1)
    metrics.retried(f"code {code}!")
    metrics.nomad_answered(f"operation {job}!", f"code {code}!", 0.1)

    assert await series(metrics) == first


async def test_jobs_nomad_accepted_are_named_up_to_a_bound() -> None:
    metrics = made(lambda: Local({"job-0": 2, "stranger": 1, "other stranger": 1}))

    for number in range(NAMED_JOBS + 10):
        metrics.dispatched(f"job-{number}", "created", 0.1)
    await metrics.scrape(probe)

    assert value(metrics, "dispatches_total", nomad_job="job-0", outcome="created") == 1
    assert value(metrics, "dispatches_total", nomad_job="other", outcome="created") == 10
    assert value(metrics, "jobs_in_flight", nomad_job="job-0") == 2
    assert value(metrics, "jobs_in_flight", nomad_job="other") == 2


def test_counters_begin_at_zero() -> None:
    metrics = made()

    assert value(metrics, "requests_received_total", stream="requests") == 0
    assert value(metrics, "results_published_total", stream="requests", outcome="oom_killed") == 0
    assert value(metrics, "requests_rejected_total", stream="requests", reason="schema") == 0
    assert value(metrics, "dead_letters_total", stream="requests", reason="poison") == 0
    assert value(metrics, "nomad_requests_total", operation="dispatch", code="403") == 0
    assert value(metrics, "fenced_total", operation="settle") == 0
    assert value(metrics, "event_stream_connected", nomad_region="", nomad_namespace="default") == 0


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(Verdict.REJECTED, error_code="request.field_missing"), "schema"),
        (Outcome(Verdict.REJECTED, error_code="request.payload_too_large"), "too_large"),
        (Outcome(Verdict.REJECTED, error_code="request.place_not_configured"), "not_allowed"),
        (Outcome(Verdict.REJECTED, error_code=NotAllowed.code), "not_allowed"),
        (Outcome(Verdict.REJECTED, error_code="nomad.job_unknown"), "refused"),
        (Outcome(Verdict.EXPIRED, error_code="request.expired"), "expired"),
    ],
)
def test_why_requests_were_rejected(outcome: Outcome, reason: str) -> None:
    metrics = made()

    settled(metrics, "render", outcome, job_id="")

    assert value(metrics, "requests_rejected_total", stream="requests", reason=reason) == 1
    assert value(metrics, "results_published_total", stream="requests", outcome=outcome.verdict.value) == 1


def test_a_finished_job_is_counted_by_how_it_ended() -> None:
    metrics = made()
    metrics.dispatched("render", "created", 0.1)

    settled(metrics, "render", Outcome(Verdict.SUCCEEDED))
    settled(metrics, "render", Outcome(Verdict.OOM_KILLED))
    settled(metrics, "render", Outcome(Verdict.UNKNOWN_GC))

    assert value(metrics, "jobs_finished_total", nomad_job="render", result="succeeded") == 1
    assert value(metrics, "jobs_finished_total", nomad_job="render", result="other") == 2
    assert value(metrics, "request_duration_seconds_count", nomad_job="render") == 3
    assert value(metrics, "dead_letters_total", stream="requests", reason="unknown_gc") == 1


class Ledger:
    """A port whose calls end as they are told to."""

    limit = 3

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def keep(self, number: int) -> int:
        if self.error:
            raise self.error
        return number

    def plain(self) -> str:
        return "plain"


async def test_a_measured_port_does_the_same_and_tells_of_it() -> None:
    ledger = Ledger()
    told: list[tuple[str, str]] = []
    port = measured(
        ledger, lambda operation, code, seconds: told.append((operation, code)) if seconds >= 0 else None
    )

    answer = await port.keep(number=4)
    ledger.error = RedisFull("full")
    with pytest.raises(RedisFull):
        await port.keep(1)
    ledger.error = ValueError("a fault of ours")
    with pytest.raises(ValueError, match="ours"):
        await port.keep(1)

    assert (answer, port.plain(), port.limit) == (4, "plain", 3)
    assert told == [("keep", "ok"), ("keep", "redis.out_of_memory")]


def test_what_redis_and_nomad_answered_is_counted() -> None:
    metrics = made()

    metrics.redis_answered("settle", Fenced.code, 0.1)
    metrics.redis_answered("read", RedisFull.code, 0.1)
    metrics.redis_answered("read", "ok", 0.1)
    metrics.nomad_answered("dispatch", "200", 0.1)

    assert value(metrics, "fenced_total", operation="settle") == 1
    assert value(metrics, "redis_errors_total", operation="read", kind=RedisFull.code) == 1
    assert value(metrics, "nomad_requests_total", operation="dispatch", code="200") == 1
    assert value(metrics, "nomad_request_duration_seconds_count", operation="dispatch") == 1


def test_lines_of_event_streams_are_counted_by_kind() -> None:
    metrics = made()

    metrics.feed_read(PLACE, 3, 1)
    metrics.feed_read(PLACE, 1, 1)

    assert value(metrics, "event_frames_total", kind="events") == 2
    assert value(metrics, "event_frames_total", kind="heartbeat") == 2


def test_a_connection_that_comes_back_is_counted_once_per_loss() -> None:
    metrics = made()

    metrics.feed_opened(PLACE)
    metrics.redis_answered("read", "ok", 0.1)
    before = [value(metrics, "reconnects_total", kind=kind) for kind in ("event_stream", "redis")]
    for _ in range(3):
        metrics.feed_lost(PLACE, "nomad.event_stream_lost")
        metrics.redis_answered("read", RedisUnavailable.code, 0.1)
    metrics.feed_opened(PLACE)
    metrics.redis_answered("read", RedisFull.code, 0.1)
    metrics.redis_answered("beat", "ok", 0.1)
    metrics.redis_answered("read", "ok", 0.1)

    assert before == [0, 0]
    assert value(metrics, "reconnects_total", kind="event_stream") == 1
    assert value(metrics, "reconnects_total", kind="redis") == 1


def test_metrics_are_instruments() -> None:
    instruments: Instruments = made()

    instruments.duplicate_stopped()

    assert isinstance(instruments, Metrics)


async def test_a_scrape_shows_the_process_as_it_is_now() -> None:
    now = Local({}, lease_remaining_seconds=6.5, gate_open=False, loop_round_seconds=0.04, draining=True)
    metrics = made(lambda: now)

    await metrics.scrape(probe)

    assert value(metrics, "lease_remaining_seconds") == 6.5
    assert value(metrics, "dispatch_gate_open") == 0
    assert value(metrics, "draining") == 1
    assert value(metrics, "event_loop_round_seconds") == 0.04
    assert value(metrics, "jobs_in_flight_limit") == 500
