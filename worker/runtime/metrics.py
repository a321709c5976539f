"""Every metric: name, labels, buckets, help. Labels take values from closed sets only, never an ID.

Knows nothing of why something happened. Gauges of what replicas share are read when scraped.
"""

import asyncio
import itertools
import math
import platform
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    metrics,
)

from worker.core.backlog import Backlog, StreamBacklog
from worker.core.model import DEAD_LETTERED, Outcome, Place, Record, Verdict
from worker.errors import Fenced, RedisUnavailable, Then, WorkerError
from worker.runtime.labels import (
    LEDGER_OPERATIONS,
    NOMAD_CODES,
    NOMAD_OPERATIONS,
    OTHER,
    REASONS,
    REDIS_OPERATIONS,
    codes,
    reason_of,
)

PREFIX = "dispatch_worker"
NAMED_JOBS = 50
"""Jobs with a label value of their own; the rest share `other`. Bounds the number of series."""
PROBE_SECONDS = 2.0
"""A scrape that Redis delays for longer goes on without Redis: Prometheus gives up at 10 s."""

# Otherwise every counter and histogram brings a second series with the time of its creation.
metrics.disable_created_metrics()  # type: ignore[no-untyped-call]

_QUICK = (0.02, 0.1, 0.5, 2.0)
_WAITS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
_RUNS = (1.0, 30.0, 600.0, 7200.0, 86_400.0)


@dataclass(frozen=True, slots=True)
class Local:
    """This process at one moment."""

    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Messages in hand by job."""
    lease_remaining_seconds: float = 0.0
    gate_open: bool = True
    draining: bool = False


class Metrics:
    """All metrics of one process, in a registry of its own. Implements `flow.instruments.Instruments`.

    Args:
        streams: names of the request streams.
        places: where event streams are held.
        max_in_flight: the limit, exported next to what is in flight.
        version: of this worker.
        revision: of its source, where the build told it.
        local: called at every scrape.
    """

    def __init__(
        self,
        streams: Iterable[str],
        places: Iterable[Place] = (),
        *,
        max_in_flight: int,
        version: str,
        revision: str = "unknown",
        local: Callable[[], Local] = Local,
    ) -> None:
        self.registry = CollectorRegistry()
        self.local = local
        self._streams = tuple(streams)
        self._codes = codes()
        self._jobs: set[str] = set()
        self._declare_messages()
        self._declare_nomad()
        self._declare_redis()
        self._declare_shared()
        self._declare_process(version, revision, max_in_flight)
        self._begin_at_zero(places)
        ProcessCollector(registry=self.registry)

    async def scrape(self, probe: Callable[[], Awaitable[Backlog]]) -> bytes:
        """The text for Prometheus, with what replicas share as `probe` finds it now.

        A probe that fails or takes too long leaves these gauges out: an old value would look current.
        """
        backlog = Backlog()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                backlog = await probe()
        except (WorkerError, TimeoutError):
            pass
        # No await from here on: scrapes may overlap.
        self._set_shared(backlog)
        self._set_own(self.local())
        return generate_latest(self.registry)

    # Declarations -----------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)

    def _declare_messages(self) -> None:
        self._received = self._counter(
            "requests_received_total", "Entries read for the first time.", "stream"
        )
        self._wait = self._histogram(
            "queue_wait_seconds", "Time from an entry's ID to its first reading.", _WAITS, "stream"
        )
        self._polled = self._gauge(
            "last_successful_poll_timestamp_seconds", "When a read was last answered.", "stream"
        )
        self._rejected = self._counter(
            "requests_rejected_total", "Requests that were never dispatched.", "stream", "reason"
        )
        self._redelivered = self._counter(
            "redeliveries_total", "Entries that came again.", "stream", "reason"
        )
        self._published = self._counter(
            "results_published_total", "Final replies published.", "stream", "outcome"
        )
        self._finished = self._counter(
            "jobs_finished_total", "Dispatched jobs whose final reply was published.", "nomad_job", "result"
        )
        # Without the outcome: with it one job would have 16 times as many series.
        self._request_seconds = self._histogram(
            "request_duration_seconds",
            "Time from receiving a message to its final reply.",
            _RUNS,
            "nomad_job",
        )
        self._dead_letters = self._counter(
            "dead_letters_total", "Messages written to the dead-letter stream.", "stream", "reason"
        )
        self._takeovers = self._counter("takeovers_total", "Messages taken over from dead workers.")
        self._let_go = self._counter("messages_let_go_total", "Messages dropped to another worker.", "code")
        self._retries = self._counter("step_retries_total", "Steps that failed and were tried again.", "code")

    def _declare_nomad(self) -> None:
        self._dispatches = self._counter(
            "dispatches_total", "Dispatches that Nomad answered for good.", "nomad_job", "outcome"
        )
        self._dispatch_seconds = self._histogram(
            "dispatch_duration_seconds", "Time Nomad took to answer a dispatch.", _QUICK
        )
        self._requests = self._counter(
            "nomad_requests_total", "Requests to Nomad by how they ended.", "operation", "code"
        )
        self._request_nomad_seconds = self._histogram(
            "nomad_request_duration_seconds", "Time of one request to Nomad.", _QUICK, "operation"
        )
        self._feed_connected = self._gauge(
            "event_stream_connected", "Whether the event stream of a place is open.", "region", "namespace"
        )
        self._feed_time = self._gauge(
            "event_stream_last_frame_timestamp_seconds",
            "When the last line of an event stream was read, heartbeats included.",
            "region",
            "namespace",
        )
        self._feed_losses = self._counter(
            "event_stream_losses_total", "Event streams lost or refused.", "code"
        )
        self._frames = self._counter("event_frames_total", "Lines of event streams read.", "kind")
        self._sweeps = self._counter("sweeps_total", "Sweeps over the live jobs that ended.")
        self._corrections = self._counter("sweep_corrections_total", "Ends a sweep found and no event told.")
        self._duplicates = self._counter(
            "duplicate_children_stopped_total", "Second dispatched jobs of one attempt that were stopped."
        )
        self._token_expiry = self._gauge(
            "nomad_token_expiry_timestamp_seconds", "When the Nomad token ends; 0: never, or not known."
        )

    def _declare_redis(self) -> None:
        self._redis_errors = self._counter("redis_errors_total", "Failed Redis calls.", "operation", "kind")
        self._reconnects = self._counter("reconnects_total", "Connections opened again.", "kind")
        self._fenced = self._counter("fenced_total", "Steps the ledger refused a former owner.", "operation")

    def _declare_shared(self) -> None:
        self._lag_known = self._gauge("stream_lag_known", "Whether the lag is known now.", "stream")
        self._lag = self._gauge("stream_lag_entries", "Entries no worker was given yet.", "stream")
        self._pending = self._gauge("stream_pending_entries", "Entries given, not yet settled.", "stream")
        self._oldest = self._gauge(
            "stream_oldest_pending_age_seconds", "Age of the oldest of them.", "stream"
        )
        self._dead_letter_entries = self._gauge("dead_letter_entries", "Entries waiting there; NaN: unknown.")
        self._workers = self._gauge("workers_alive", "Replicas whose lease is not over; NaN: unknown.")

    def _declare_process(self, version: str, revision: str, max_in_flight: int) -> None:
        self._gauge("jobs_in_flight_limit", "Most messages this process holds at once.").set(max_in_flight)
        self._in_flight = self._gauge("jobs_in_flight", "Messages this process holds.", "nomad_job")
        self._lease = self._gauge("lease_remaining_seconds", "How long the lease is certainly held.")
        self._gate = self._gauge("dispatch_gate_open", "Whether dispatches flow freely.")
        self._draining = self._gauge("draining", "Whether this process is shutting down.")
        labels = ("version", "revision", "python")
        build = self._gauge("build_info", "Always 1; the labels tell what runs.", *labels)
        build.labels(version, revision, platform.python_version()).set(1)

    def _begin_at_zero(self, places: Iterable[Place]) -> None:
        """Make every series whose labels are known: `rate` does not see a counter's first increment."""
        known: list[tuple[Counter | Gauge | Histogram, tuple[Iterable[str], ...]]] = [
            (self._received, (self._streams,)),
            (self._wait, (self._streams,)),
            (self._rejected, (self._streams, REASONS)),
            (self._redelivered, (self._streams, ("reconciled", "taken_over"))),
            (self._published, (self._streams, Verdict)),
            (self._dead_letters, (self._streams, DEAD_LETTERED)),
            (self._frames, (("heartbeat", "events"),)),
            (self._reconnects, (("event_stream",),)),
            (self._fenced, (LEDGER_OPERATIONS,)),
            (self._redis_errors, (REDIS_OPERATIONS, (RedisUnavailable.code,))),
            (self._requests, (NOMAD_OPERATIONS, ("200", "error"))),
            (self._requests, (NOMAD_OPERATIONS[:1], NOMAD_CODES)),
            (self._feed_losses, (self._passing("nomad.event_stream"),)),
            (self._retries, (self._passing(),)),
            (self._let_go, ([code for code, then in self._codes.items() if then is Then.LET_GO],)),
        ]
        for metric, values in known:
            for labels in itertools.product(*values):
                metric.labels(*labels)
        for place in places:
            self._feed_connected.labels(place.region, place.namespace)

    def _passing(self, prefix: str = "") -> list[str]:
        """Codes of errors after which the worker tries again."""
        again = {Then.RETRY, Then.PAUSE}
        return [code for code, then in self._codes.items() if then in again and code.startswith(prefix)]

    # What happened (Instruments) --------------------------------------------------------------------

    def polled(self, stream: str) -> None:
        """See `Instruments.polled`."""
        self._polled.labels(stream).set(time.time())

    def received(self, stream: str, wait_seconds: float) -> None:
        """See `Instruments.received`."""
        self._received.labels(stream).inc()
        self._wait.labels(stream).observe(wait_seconds)

    def redelivered(self, stream: str, reason: str) -> None:
        """See `Instruments.redelivered`."""
        self._redelivered.labels(stream, reason).inc()

    def taken_over(self, count: int) -> None:
        """See `Instruments.taken_over`."""
        self._takeovers.inc(count)

    def dispatched(self, job: str, outcome: str, seconds: float) -> None:
        """See `Instruments.dispatched`. A job gets a label of its own once Nomad has accepted it."""
        accepted = outcome in {"created", "repeated"}
        if accepted and job not in self._jobs and len(self._jobs) < NAMED_JOBS:
            self._jobs.add(job)
            for known in ("created", "refused"):
                self._dispatches.labels(job, known)
            for result in ("succeeded", "other"):
                self._finished.labels(job, result)
        self._dispatches.labels(self._job(job), outcome if accepted else "refused").inc()
        self._dispatch_seconds.observe(seconds)

    def retried(self, code: str) -> None:
        """See `Instruments.retried`."""
        self._retries.labels(self._code(code)).inc()

    def let_go(self, code: str) -> None:
        """See `Instruments.let_go`."""
        self._let_go.labels(self._code(code)).inc()

    def settled(self, record: Record, outcome: Outcome, seconds: float) -> None:
        """See `Instruments.settled`."""
        stream, verdict = record.key.stream, outcome.verdict
        self._published.labels(stream, verdict.value).inc()
        if verdict in DEAD_LETTERED:
            self._dead_letters.labels(stream, verdict.value).inc()
        if verdict in {Verdict.REJECTED, Verdict.EXPIRED}:
            self._rejected.labels(stream, reason_of(outcome)).inc()
        if record.job_id:
            result = "succeeded" if verdict is Verdict.SUCCEEDED else "other"
            self._finished.labels(self._job(record.routing.job), result).inc()
            self._request_seconds.labels(self._job(record.routing.job)).observe(seconds)

    def duplicate_stopped(self) -> None:
        """See `Instruments.duplicate_stopped`."""
        self._duplicates.inc()

    def feed_opened(self, place: Place) -> None:
        """See `Instruments.feed_opened`."""
        self._feed_connected.labels(place.region, place.namespace).set(1)

    def feed_lost(self, place: Place, code: str) -> None:
        """See `Instruments.feed_lost`."""
        self._feed_connected.labels(place.region, place.namespace).set(0)
        self._feed_losses.labels(self._code(code)).inc()
        self._reconnects.labels("event_stream").inc()

    def feed_read(self, place: Place, *, heartbeat: bool) -> None:
        """See `Instruments.feed_read`."""
        self._feed_time.labels(place.region, place.namespace).set(time.time())
        self._frames.labels("heartbeat" if heartbeat else "events").inc()

    def swept(self, corrections: int) -> None:
        """See `Instruments.swept`."""
        self._sweeps.inc()
        self._corrections.inc(corrections)

    # What the adapters tell, through `measured` ------------------------------------------------------

    def nomad_answered(self, operation: str, code: str, seconds: float) -> None:
        """A request to Nomad ended; `code` is the HTTP status, or `error`."""
        operation = operation if operation in NOMAD_OPERATIONS else OTHER
        self._requests.labels(operation, code if code in NOMAD_CODES else OTHER).inc()
        self._request_nomad_seconds.labels(operation).observe(seconds)

    def redis_answered(self, operation: str, code: str, _seconds: float) -> None:
        """A step against Redis ended; `code` is `ok` or an error's. Only failures are counted."""
        if code == Fenced.code and operation in LEDGER_OPERATIONS:
            self._fenced.labels(operation).inc()
        elif code.startswith("redis."):
            operation = operation if operation in REDIS_OPERATIONS else OTHER
            self._redis_errors.labels(operation, self._code(code)).inc()

    def token_expires(self, unix_seconds: float) -> None:
        """When the Nomad token ends; 0: never, or not known."""
        self._token_expiry.set(unix_seconds)

    # At every scrape --------------------------------------------------------------------------------

    def _set_shared(self, backlog: Backlog) -> None:
        for gauge in (self._lag_known, self._lag, self._pending, self._oldest):
            gauge.clear()
        for name in self._streams:
            stream = backlog.streams.get(name, StreamBacklog())
            self._lag_known.labels(name).set(stream.lag is not None)
            for gauge, value in (
                (self._lag, stream.lag),
                (self._pending, stream.pending),
                (self._oldest, stream.oldest_pending_seconds),
            ):
                if value is not None:
                    gauge.labels(name).set(value)
        self._dead_letter_entries.set(math.nan if backlog.dead_letters is None else backlog.dead_letters)
        self._workers.set(math.nan if backlog.workers is None else backlog.workers)

    def _set_own(self, local: Local) -> None:
        self._in_flight.clear()
        for label in (OTHER, *self._jobs):
            self._in_flight.labels(label)
        for job, count in local.in_flight.items():
            self._in_flight.labels(self._job(job)).inc(count)
        self._lease.set(max(0.0, local.lease_remaining_seconds))
        self._gate.set(local.gate_open)
        self._draining.set(local.draining)

    def _job(self, job: str) -> str:
        return job if job in self._jobs else OTHER

    def _code(self, code: str) -> str:
        return code if code in self._codes else OTHER
