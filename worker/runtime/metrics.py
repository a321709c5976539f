"""Keeps the metrics: counts what the flow tells, and looks at the rest when Prometheus asks.

Knows nothing of why something happened. Gauges of what replicas share are read when scraped.
"""

import asyncio
import itertools
import math
import platform
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from worker.core.backlog import Backlog, StreamBacklog
from worker.core.model import DEAD_LETTERED, Outcome, Place, Record, Verdict
from worker.core.pace import Brake
from worker.core.policy_file import RetriedVerdict
from worker.core.trace import trace_id_of
from worker.errors import Fenced, RedisUnavailable, Then, WorkerError
from worker.runtime.families import Families
from worker.runtime.labels import (
    ACTIONS,
    LEDGER_OPERATIONS,
    NOMAD_CODES,
    NOMAD_OPERATIONS,
    OTHER,
    REASONS,
    REDIS_OPERATIONS,
    TIMED_OPERATIONS,
    codes,
    reason_of,
)

NAMED_JOBS = 50
"""Jobs with a label value of their own; the rest share `other`. Bounds the number of series."""
PROBE_SECONDS = 2.0
"""A scrape that Redis delays for longer goes on without Redis: Prometheus gives up at 10 s."""

_CREATED, _REFUSED = "created", "refused"
_SUCCEEDED, _OTHER_RESULT = "succeeded", "other"


@dataclass(frozen=True, slots=True)
class Local:
    """This process at one moment."""

    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Messages in hand by job."""
    lease_remaining_seconds: float = 0.0
    gate_open: bool = True
    dispatch_limit: int = 0
    """Most dispatches on their way at once, now."""
    dispatch_brake: Brake = Brake.NONE
    loop_round_seconds: float = 0.0
    """How long a round of the event loop takes, lately."""
    draining: bool = False
    undecided_oldest_seconds: float = 0.0
    """How long the longest undecided message in hand has been due."""


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
        self.families = Families(self.registry)
        self.local = local
        self._streams = tuple(streams)
        self._codes = codes()
        self._jobs: set[str] = set()
        self._feed_times: dict[Place, Gauge] = {}
        self._lost_feeds: set[Place] = set()
        self._redis_away = False
        families = self.families
        self._of_streams: tuple[tuple[Gauge, Callable[[StreamBacklog], float | None]], ...] = (
            (families.lag, attrgetter("lag")),
            (families.pending, attrgetter("pending")),
            (families.oldest, attrgetter("oldest_pending_seconds")),
            (families.queued, attrgetter("queued")),
            (families.delayed, attrgetter("delayed")),
            (families.oldest_queued, attrgetter("oldest_queued_seconds")),
        )
        self.families.limit.set(max_in_flight)
        self.families.build.labels(version, revision, platform.python_version()).set(1)
        self._begin_at_zero(places)
        ProcessCollector(registry=self.registry)

    async def scrape(self, probe: Callable[[], Awaitable[Backlog]], accept: str = "") -> tuple[bytes, str]:
        """What Prometheus gets, with what replicas share as `probe` finds it now.

        A probe that fails or takes too long leaves these gauges out: an old value would look current.

        Args:
            probe: reads the backlog.
            accept: the request's Accept header. OpenMetrics, where it is asked for, carries trace IDs.

        Returns:
            The body and its content type.
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
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _begin_at_zero(self, places: Iterable[Place]) -> None:
        """Make every series whose labels are known: `rate` does not see a counter's first increment."""
        families = self.families
        known: list[tuple[Counter | Gauge | Histogram, tuple[Iterable[str], ...]]] = [
            (families.received, (self._streams,)),
            (families.polled, (self._streams,)),
            (families.wait, (self._streams,)),
            (families.decision, (self._streams,)),
            (families.rejected, (self._streams, REASONS)),
            (families.redelivered, (self._streams, ("reconciled", "taken_over"))),
            (families.published, (self._streams, Verdict)),
            (families.repeated, (get_args(RetriedVerdict),)),
            (families.dead_letters, (self._streams, DEAD_LETTERED)),
            (families.frames, (("heartbeat", "events"),)),
            (families.reconnects, (("event_stream", "redis"),)),
            (families.orders, (ACTIONS, ("done", "refused", "failed"))),
            (families.fenced, (LEDGER_OPERATIONS,)),
            (families.redis_errors, (REDIS_OPERATIONS, (RedisUnavailable.code,))),
            (families.requests, (NOMAD_OPERATIONS, ("200", "error"))),
            (families.requests, (NOMAD_OPERATIONS[:1], NOMAD_CODES)),
            (families.feed_losses, (self._passing("nomad.event_stream"),)),
            (families.retries, (self._passing(),)),
            (families.let_go, ([code for code, then in self._codes.items() if then is Then.LET_GO],)),
        ]
        for metric, values in known:
            for labels in itertools.product(*values):
                metric.labels(*labels)
        self._name(OTHER)
        for place in places:
            families.feed_connected.labels(place.region, place.namespace)

    def _passing(self, prefix: str = "") -> list[str]:
        """Codes of errors after which the worker tries again."""
        again = {Then.RETRY, Then.PAUSE}
        return [code for code, then in self._codes.items() if then in again and code.startswith(prefix)]

    # What happened (Instruments) --------------------------------------------------------------------

    def polled(self, stream: str) -> None:
        """See `Instruments.polled`."""
        self.families.polled.labels(stream).set(time.time())

    def received(self, stream: str, wait_seconds: float) -> None:
        """See `Instruments.received`."""
        self.families.received.labels(stream).inc()
        self.families.wait.labels(stream).observe(wait_seconds)

    def redelivered(self, stream: str, reason: str) -> None:
        """See `Instruments.redelivered`."""
        self.families.redelivered.labels(stream, reason).inc()

    def taken_over(self, count: int) -> None:
        """See `Instruments.taken_over`."""
        self.families.takeovers.inc(count)

    def dispatched(self, job: str, outcome: str, seconds: float) -> None:
        """See `Instruments.dispatched`. A job gets a label of its own once Nomad has accepted it."""
        accepted = outcome in {_CREATED, "repeated"}
        if accepted:
            self.name_job(job)
        self.families.dispatches.labels(self._job(job), outcome if accepted else _REFUSED).inc()
        self.families.dispatch_seconds.observe(seconds)

    def decided(self, stream: str, seconds: float) -> None:
        """See `Instruments.decided`."""
        self.families.decision.labels(stream).observe(seconds)

    def retried(self, code: str) -> None:
        """See `Instruments.retried`."""
        self.families.retries.labels(self._code(code)).inc()

    def let_go(self, code: str) -> None:
        """See `Instruments.let_go`."""
        self.families.let_go.labels(self._code(code)).inc()

    def repeated(self, verdict: Verdict) -> None:
        """See `Instruments.repeated`."""
        self.families.repeated.labels(verdict.value).inc()

    def settled(self, record: Record, outcome: Outcome, seconds: float) -> None:
        """See `Instruments.settled`."""
        families = self.families
        stream, verdict = record.key.stream, outcome.verdict
        families.published.labels(stream, verdict.value).inc()
        if verdict in DEAD_LETTERED:
            families.dead_letters.labels(stream, verdict.value).inc()
        if verdict in {Verdict.REJECTED, Verdict.EXPIRED}:
            families.rejected.labels(stream, reason_of(outcome)).inc()
        if record.job_id:
            result = _SUCCEEDED if verdict is Verdict.SUCCEEDED else _OTHER_RESULT
            job, trace_id = self._job(record.routing.job), trace_id_of(record.routing.traceparent)
            families.finished.labels(job, result).inc()
            exemplar = {"trace_id": trace_id} if trace_id else None
            families.request_seconds.labels(job).observe(seconds, exemplar)

    def duplicate_stopped(self) -> None:
        """See `Instruments.duplicate_stopped`."""
        self.families.duplicates.inc()

    def feed_opened(self, place: Place) -> None:
        """See `Instruments.feed_opened`."""
        self.families.feed_connected.labels(place.region, place.namespace).set(1)
        if place in self._lost_feeds:
            self._lost_feeds.remove(place)
            self.families.reconnects.labels("event_stream").inc()

    def feed_lost(self, place: Place, code: str) -> None:
        """See `Instruments.feed_lost`."""
        self.families.feed_connected.labels(place.region, place.namespace).set(0)
        self.families.feed_losses.labels(self._code(code)).inc()
        self._lost_feeds.add(place)

    def feed_read(self, place: Place, frames: int, heartbeats: int) -> None:
        """See `Instruments.feed_read`."""
        feed_time = self._feed_times.get(place)
        if feed_time is None:
            feed_time = self._feed_times[place] = self.families.feed_time.labels(
                place.region, place.namespace
            )
        feed_time.set(time.time())
        if heartbeats:
            self.families.frames.labels("heartbeat").inc(heartbeats)
        if frames > heartbeats:
            self.families.frames.labels("events").inc(frames - heartbeats)

    def swept(self, corrections: int) -> None:
        """See `Instruments.swept`."""
        self.families.sweeps.inc()
        self.families.corrections.inc(corrections)

    # What the adapters tell, through `measured` and `lookout` -----------------------------------------

    def nomad_answered(self, operation: str, code: str, seconds: float) -> None:
        """A request to Nomad ended; `code` is the HTTP status, or `error`."""
        operation = operation if operation in NOMAD_OPERATIONS else OTHER
        self.families.requests.labels(operation, code if code in NOMAD_CODES else OTHER).inc()
        timed = operation if operation in TIMED_OPERATIONS else OTHER
        self.families.request_nomad_seconds.labels(timed).observe(seconds)

    def redis_answered(self, operation: str, code: str, _seconds: float) -> None:
        """A step against Redis ended; `code` is `ok` or an error's. Failures are counted, and their end."""
        if code == "ok":
            if self._redis_away:
                self._redis_away = False
                self.families.reconnects.labels("redis").inc()
            return
        self._redis_away = self._redis_away or code == RedisUnavailable.code
        if code == Fenced.code and operation in LEDGER_OPERATIONS:
            self.families.fenced.labels(operation).inc()
        elif code.startswith("redis.") and code in self._codes:
            operation = operation if operation in REDIS_OPERATIONS else OTHER
            self.families.redis_errors.labels(operation, self._code(code)).inc()

    def ordered(self, action: str, outcome: str) -> None:
        """Somebody ordered an action on the status page; `outcome` is `done`, `refused` or `failed`."""
        self.families.orders.labels(action if action in ACTIONS else OTHER, outcome).inc()

    def name_job(self, job: str) -> None:
        """Give a job that Nomad has a label of its own, while there is room."""
        if job not in self._jobs and len(self._jobs) < NAMED_JOBS:
            self._jobs.add(job)
            self._name(job)

    def children(self, by_job: Mapping[str, int] | None) -> None:
        """How many dispatched jobs Nomad still has of each parameterized one; None: it does not tell."""
        self.families.children.clear()
        for job, count in (by_job or {}).items():
            self.families.children.labels(self._job(job)).inc(count)

    def open_evaluations(self, count: int | None) -> None:
        """How many evaluations Nomad has pending or blocked; None: it does not tell."""
        self.families.evaluations.set(math.nan if count is None else count)

    def token_expires(self, unix_seconds: float) -> None:
        """When the Nomad token ends; 0: never, or not known."""
        self.families.token_expiry.set(unix_seconds)

    def policy_read(self, fault: str) -> None:
        """Why the policy file as it is now is not in force; empty: it is."""
        self.families.policy_reload.set(not fault)

    # At every scrape --------------------------------------------------------------------------------

    def _set_shared(self, backlog: Backlog) -> None:
        families = self.families
        for gauge in (families.lag_known, families.slots, *(gauge for gauge, _ in self._of_streams)):
            gauge.clear()
        for name in self._streams:
            stream = backlog.streams.get(name, StreamBacklog())
            families.lag_known.labels(name).set(stream.lag is not None)
            for gauge, told in self._of_streams:
                if (value := told(stream)) is not None:
                    gauge.labels(name).set(value)
        for scope, taken in backlog.slots_taken.items():
            families.slots.labels(scope).set(taken)
        families.dead_letter_entries.set(math.nan if backlog.dead_letters is None else backlog.dead_letters)
        expire = backlog.dead_letters_expire
        families.dead_letters_expire.set(math.nan if expire is None else expire)
        families.workers.set(math.nan if backlog.workers is None else backlog.workers)

    def _set_own(self, local: Local) -> None:
        families = self.families
        families.in_flight.clear()
        for label in (OTHER, *self._jobs):
            families.in_flight.labels(label)
        for job, count in local.in_flight.items():
            families.in_flight.labels(self._job(job)).inc(count)
        families.lease.set(max(0.0, local.lease_remaining_seconds))
        families.undecided.set(max(0.0, local.undecided_oldest_seconds))
        families.gate.set(local.gate_open)
        families.pace.set(local.dispatch_limit)
        for brake in Brake:
            families.brake.labels(brake.value).set(brake is local.dispatch_brake)
        families.loop_round.set(local.loop_round_seconds)
        families.draining.set(local.draining)

    def _name(self, job: str) -> None:
        for outcome in (_CREATED, _REFUSED):
            self.families.dispatches.labels(job, outcome)
        for result in (_SUCCEEDED, _OTHER_RESULT):
            self.families.finished.labels(job, result)
        self.families.request_seconds.labels(job)

    def _job(self, job: str) -> str:
        return job if job in self._jobs else OTHER

    def _code(self, code: str) -> str:
        return code if code in self._codes else OTHER
