"""Declares every metric: name, kind, labels, buckets, unit and help, in one place.

Knows nothing of when one changes. Labels take their values from the closed sets of `labels`, never an ID.
"""

from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, metrics

PREFIX = "dispatch_worker"

# Otherwise every counter and histogram brings a second series with the time of its creation.
metrics.disable_created_metrics()  # type: ignore[no-untyped-call]

ANSWERS = (0.02, 0.1, 0.5, 2.0)
"""Seconds: a healthy Nomad answers within the first two, and the worker stops waiting soon after the last."""
WAITS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
DECISIONS = (0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0)
"""Seconds. 30 is the objective's bound: alerts and dashboards name this bucket."""
RUNS = (1.0, 30.0, 600.0, 7200.0, 86_400.0)


Growing = TypeVar("Growing", Counter, Histogram)


def _kept(metric: Growing) -> Growing:
    """The same metric, which finds its series in a twentieth of the time; gauges are cleared, these never."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as it is documented. `name` is the full one, as a query names it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class Families:
    """The metrics of one process, each with all its series, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.declared: list[Declared] = []
        self._declare_messages()
        self._declare_nomad()
        self._declare_redis()
        self._declare_shared()
        self._declare_process()

    def _declare(self, kind: str, name: str, text: str, labels: tuple[str, ...]) -> None:
        self.declared.append(Declared(f"{PREFIX}_{name}", kind, labels, text))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._declare("counter", name, text, labels)
        return _kept(Counter(name, text, labels, namespace=PREFIX, registry=self._registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._declare("gauge", name, text, labels)
        return Gauge(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self._declare("histogram", name, text, labels)
        return _kept(
            Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=buckets)
        )

    def _declare_messages(self) -> None:
        self.received = self._counter("requests_received_total", "Entries read for the first time.", "stream")
        self.wait = self._histogram(
            "queue_wait_seconds", "Time from an entry's ID to its first reading.", WAITS, "stream"
        )
        self.decision = self._histogram(
            "time_to_decision_seconds",
            "Time from a request falling due until Nomad has its job, or it is answered without one.",
            DECISIONS,
            "stream",
        )
        self.undecided = self._gauge(
            "undecided_oldest_age_seconds",
            "How long the oldest message in hand has been due without such a decision; 0: none is.",
        )
        self.polled = self._gauge(
            "last_successful_poll_timestamp_seconds", "When a read was last answered.", "stream"
        )
        self.rejected = self._counter(
            "requests_rejected_total", "Requests that were never dispatched.", "stream", "reason"
        )
        self.redelivered = self._counter("redeliveries_total", "Entries that came again.", "stream", "reason")
        self.published = self._counter(
            "results_published_total", "Final replies published.", "stream", "outcome"
        )
        self.finished = self._counter(
            "jobs_finished_total", "Dispatched jobs whose final reply was published.", "nomad_job", "result"
        )
        self.repeated = self._counter(
            "runs_repeated_total",
            "Runs that ended so and were followed by another of their message.",
            "outcome",
        )
        # Without the outcome: with it one job would have 16 times as many series.
        self.request_seconds = self._histogram(
            "request_duration_seconds",
            "Time from receiving a message to its final reply, for dispatched jobs.",
            RUNS,
            "nomad_job",
        )
        self.dead_letters = self._counter(
            "dead_letters_total", "Messages written to the dead-letter stream.", "stream", "reason"
        )
        self.takeovers = self._counter("takeovers_total", "Messages taken over from dead workers.")
        self.let_go = self._counter("messages_let_go_total", "Messages dropped to another worker.", "code")
        self.retries = self._counter("step_retries_total", "Steps that failed and were tried again.", "code")

    def _declare_nomad(self) -> None:
        self.dispatches = self._counter(
            "dispatches_total", "Dispatches that Nomad answered for good.", "nomad_job", "outcome"
        )
        # Without the job, as a histogram is seven series for each; the children that slow a job's are told.
        self.dispatch_seconds = self._histogram(
            "dispatch_duration_seconds", "Time Nomad took to answer a dispatch.", ANSWERS
        )
        self.requests = self._counter(
            "nomad_requests_total", "Requests to Nomad by how they ended.", "operation", "code"
        )
        self.request_nomad_seconds = self._histogram(
            "nomad_request_duration_seconds", "Time of one request to Nomad.", ANSWERS, "operation"
        )
        self.feed_connected = self._gauge(
            "event_stream_connected",
            "Whether the event stream of a place is open.",
            "nomad_region",
            "nomad_namespace",
        )
        self.feed_time = self._gauge(
            "event_stream_last_frame_timestamp_seconds",
            "When the last line of an event stream was read, heartbeats included.",
            "nomad_region",
            "nomad_namespace",
        )
        self.feed_losses = self._counter(
            "event_stream_losses_total", "Event streams lost or refused.", "code"
        )
        self.frames = self._counter("event_frames_total", "Lines of event streams read.", "kind")
        self.sweeps = self._counter("sweeps_total", "Sweeps over the live jobs that ended.")
        self.corrections = self._counter("sweep_corrections_total", "Ends a sweep found and no event told.")
        self.duplicates = self._counter(
            "duplicate_children_stopped_total", "Second dispatched jobs of one attempt that were stopped."
        )
        self.children = self._gauge(
            "nomad_children_entries",
            "Dispatched jobs that Nomad still has, finished ones included: its token check reads them all.",
            "nomad_job",
        )
        self.evaluations = self._gauge(
            "nomad_open_evaluations",
            "Evaluations that Nomad has pending or blocked in the places served; NaN: not known.",
        )
        self.token_expiry = self._gauge(
            "nomad_token_expiry_timestamp_seconds", "When the Nomad token ends; 0: never, or not known."
        )

    def _declare_redis(self) -> None:
        self.redis_errors = self._counter("redis_errors_total", "Failed Redis calls.", "operation", "kind")
        self.reconnects = self._counter(
            "reconnects_total", "Connections that came back after they were lost.", "kind"
        )
        self.fenced = self._counter("fenced_total", "Steps the ledger refused a former owner.", "operation")

    def _declare_shared(self) -> None:
        self.lag_known = self._gauge("stream_lag_known", "Whether the lag is known now.", "stream")
        self.lag = self._gauge("stream_lag_entries", "Entries no worker was given yet.", "stream")
        self.pending = self._gauge("stream_pending_entries", "Entries given, not yet settled.", "stream")
        self.oldest = self._gauge(
            "stream_oldest_pending_age_seconds", "Age of the oldest of them; 0: there is none.", "stream"
        )
        self.queued = self._gauge(
            "stream_queued_entries",
            "Of the pending ones, those held back in Redis by a cap, a rate or a fair share.",
            "stream",
        )
        self.delayed = self._gauge(
            "stream_delayed_entries", "Of the pending ones, those whose time has not come.", "stream"
        )
        self.oldest_queued = self._gauge(
            "stream_oldest_queued_age_seconds",
            "How long the oldest held back has waited for its turn; 0: there is none.",
            "stream",
        )
        self.slots = self._gauge("cap_slots_taken", "Slots of the caps that jobs in flight take.", "scope")
        self.dead_letter_entries = self._gauge("dead_letter_entries", "Entries waiting there; NaN: unknown.")
        self.dead_letters_expire = self._gauge(
            "dead_letters_expire",
            "Whether some were announced to be dropped for their age; NaN: unknown.",
        )
        self.workers = self._gauge("workers_alive", "Replicas whose lease is not over; NaN: unknown.")

    def _declare_process(self) -> None:
        self.limit = self._gauge("jobs_in_flight_limit", "Most messages this process holds at once.")
        self.in_flight = self._gauge("jobs_in_flight", "Messages this process holds.", "nomad_job")
        self.lease = self._gauge("lease_remaining_seconds", "How long the lease is certainly held.")
        self.gate = self._gauge("dispatch_gate_open", "Whether dispatches flow freely.")
        self.orders = self._counter(
            "status_actions_total", "Actions ordered on the status page.", "action", "outcome"
        )
        self.pace = self._gauge("dispatch_concurrency_limit", "Most dispatches on their way at once, now.")
        self.brake = self._gauge(
            "dispatch_concurrency_brake", "1 for what holds that limit down now, 0 for the rest.", "reason"
        )
        self.loop_round = self._gauge(
            "event_loop_round_seconds",
            "How long a round of the event loop takes, lately; each wait has some.",
        )
        self.draining = self._gauge("draining", "Whether this process is shutting down.")
        self.policy_reload = self._gauge(
            "config_last_reload_successful",
            "Whether the policy file as it is now is in force; 0: it has a fault, and the last good one is.",
        )
        self.build = self._gauge(
            "build_info", "Always 1; the labels tell what runs.", "version", "revision", "python"
        )
