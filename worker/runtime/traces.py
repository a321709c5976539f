"""Makes a message's spans when it is settled, out of the times in its record: a crash on the way loses none.

Knows nothing of what is counted or logged. OpenTelemetry is an extra, set up by its own `OTEL_` variables.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from worker.core.model import MessageKey, Outcome, Record, Verdict
from worker.core.trace import own_trace_id, parse_traceparent, span_id, traceparent
from worker.errors import SettingsInvalid
from worker.flow.instruments import Instruments

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

RUN = "run"
"""The span that a job's own spans stand under, where the job is told."""
CLOSE_SECONDS = 3.0
"""For the last spans at the end of the process; a collector that is away must not hold it up."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_WELL = frozenset({Verdict.SUCCEEDED, Verdict.DETACHED})


class Span(NamedTuple):
    """One part of a message's way. Times are Unix milliseconds."""

    name: str
    start_ms: int
    end_ms: int


class Traces:
    """Sends the spans of settled messages.

    Args:
        provider: of the SDK; its sampler, resource and exporter follow the environment.
        ids: the generator that the provider was given.
        prefix: tells queues apart where a producer gave no trace.
        now_ms: Unix milliseconds on Redis's clock, as in the records.
    """

    def __init__(
        self, provider: "TracerProvider", ids: "Ids", *, prefix: str, now_ms: Callable[[], int]
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("worker")
        self._ids = ids
        self._prefix = prefix
        self._now_ms = now_ms

    def told(self, instruments: Instruments) -> Instruments:
        """The same instruments; each message they are told is settled is traced too."""
        return cast("Instruments", _Traced(instruments, self))

    def for_job(self, key: MessageKey, given: str) -> str:
        """The `traceparent` that a message's job is handed; empty where its producer gave none."""
        parent = parse_traceparent(given)
        if parent is None:
            return ""
        return traceparent(parent.trace_id, span_id(parent.trace_id, key, RUN), sampled=parent.sampled)

    def settled(self, record: Record, outcome: Outcome) -> None:
        """Send the spans of one message: itself, and the parts of its way under it."""
        # Imported where they are used: without the extra this module can still be.
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415

        key, now_ms = record.key, self._now_ms()
        parent = parse_traceparent(record.routing.traceparent)
        trace_id = self._ids.trace_id = parent.trace_id if parent else own_trace_id(self._prefix, key)
        context = None
        if parent:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else 0)
            above = trace.SpanContext(trace_id, parent.span_id, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(above))
        whole, *parts = spans(record, outcome, now_ms)
        self._ids.span_id = span_id(trace_id, key, "message")
        message = self._tracer.start_span(
            whole.name,
            context,
            SpanKind.CONSUMER,
            attributes(record, outcome),
            start_time=_ns(whole.start_ms),
        )
        if outcome.verdict not in _WELL:
            message.set_status(Status(StatusCode.ERROR, outcome.error_code or outcome.verdict.value))
        for part in parts:
            self._ids.span_id = span_id(trace_id, key, part.name)
            below = self._tracer.start_span(
                part.name, trace.set_span_in_context(message), start_time=_ns(part.start_ms)
            )
            below.end(_ns(part.end_ms))
        message.end(_ns(whole.end_ms))

    async def aclose(self) -> None:
        """Send what is left, for a few seconds at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        # A thread that the process does not wait for: the exporter repeats for longer than there is time.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), CLOSE_SECONDS)
        except TimeoutError:
            return


class _Traced:
    def __init__(self, instruments: Instruments, traces: Traces) -> None:
        self._instruments = instruments
        self._traces = traces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instruments, name)

    def settled(self, record: Record, outcome: Outcome, seconds: float) -> None:
        self._instruments.settled(record, outcome, seconds)
        self._traces.settled(record, outcome)


def traces_from_environment(
    prefix: str,
    worker: str,
    version: str,
    now_ms: Callable[[], int],
    environment: Mapping[str, str] = os.environ,
) -> Traces | None:
    """Traces as the standard `OTEL_` variables say; None: they are off, as they are by default.

    Raises:
        SettingsInvalid: they are wanted, and the extra is missing or the protocol is another one.
    """
    if not wanted(environment):
        return None
    for name in _PROTOCOLS:
        if environment.get(name, _PROTOCOL) != _PROTOCOL:
            message = f"{name} is {environment[name]!r}: traces are sent as {_PROTOCOL} only"
            raise SettingsInvalid(message)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        message = (
            "traces are wanted (OTEL_ variables); install them: pip install 'nomad-dispatch-worker[otel]'"
        )
        raise SettingsInvalid(message) from error
    resource = {"service.version": version, "service.instance.id": worker}
    if not _is_named(environment):
        # What is given here wins over the variables.
        resource["service.name"] = "dispatch-worker"
    ids = Ids()
    provider = TracerProvider(id_generator=_generator(ids), resource=Resource.create(resource))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider, ids, prefix=prefix, now_ms=now_ms)


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none":
        return False
    return exporter == "otlp" or any(environment.get(name) for name in _ENDPOINTS)


class Ids:
    """The IDs of the next trace and span. They are set right before a span begins, all in one thread."""

    trace_id = 1
    span_id = 1


def spans(record: Record, outcome: Outcome, now_ms: int) -> Iterator[Span]:
    """The message's span, then its parts in order. A part that never began is left out.

    Times come from three clocks (Redis's, the Nomad servers', the clients'): each part begins where the one
    before ended, and none ends before it began.
    """
    received_ms = record.received_at_ms or now_ms
    queued_ms = record.queued_at_ms(received_ms)
    ended_ms = min(_ended_ms(outcome) or now_ms, now_ms)
    yield Span(f"dispatch {record.routing.job}".strip(), queued_ms, max(now_ms, queued_ms))

    at_ms = queued_ms
    steps = list(_until_the_dispatch(record, received_ms))
    steps.append(("dispatch", record.dispatched_at_ms if record.job_id else ended_ms))
    if record.job_id:
        steps += [("placement", record.placed_at_ms), (RUN, ended_ms if record.placed_at_ms else 0)]
    for name, until_ms in (*steps, ("settle", now_ms)):
        if until_ms:
            yield Span(name, at_ms, max(at_ms, until_ms))
            at_ms = max(at_ms, until_ms)


def _until_the_dispatch(record: Record, received_ms: int) -> Iterator[tuple[str, int]]:
    """Waiting ends when the dispatch begins; runs that were followed by another stand whole."""
    if not record.runs:
        # A record of an older version, and a message that was never dispatched, tell no such time.
        yield "queue wait", record.intended_at_ms or received_ms
        return
    yield "queue wait", record.runs[0].dispatched_at_ms
    for run in record.runs:
        yield f"attempt {run.attempt}", run.ended_at_ms
    yield "retry wait", record.intended_at_ms


def attributes(record: Record, outcome: Outcome) -> dict[str, str | int]:
    """What the message's span tells: names by OpenTelemetry's conventions where there are any."""
    told: dict[str, str | int | None] = {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.key.stream,
        "messaging.message.id": record.key.id,
        "messaging.message.conversation_id": record.routing.correlation_id,
        "nomad.job.parent_id": record.routing.job,
        "nomad.job.id": record.job_id,
        "nomad.namespace": record.routing.namespace,
        "nomad.region": record.routing.region,
        "nomad.evaluation.id": record.eval_id,
        "dispatch_worker.verdict": outcome.verdict.value,
        "dispatch_worker.error_code": outcome.error_code,
        "dispatch_worker.exit_code": outcome.exit_code,
        "dispatch_worker.attempt": record.attempt,
        "dispatch_worker.fence": record.fence,
    }
    return {name: value for name, value in told.items() if value is not None and value != ""}


def _ended_ms(outcome: Outcome) -> int:
    """When the last of the tasks that count ended, by the clients' clocks; 0: not told."""
    finished: list[int] = []
    for allocation in outcome.evidence.get("allocations") or ():
        for task in allocation.get("tasks") or ():
            if allocation.get("counts") and task.get("main") and task.get("finished_at"):
                finished += _instant_ms(str(task["finished_at"]))
    return max(finished, default=0)


def _instant_ms(text: str) -> list[int]:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return []
    return [round(moment.timestamp() * 1000)] if moment.tzinfo and moment.year > 1 else []


def _ns(unix_ms: int) -> int:
    return unix_ms * 1_000_000


def _is_named(environment: Mapping[str, str]) -> bool:
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return "OTEL_SERVICE_NAME" in environment or "service.name=" in attributes


def _generator(ids: Ids) -> Any:
    from opentelemetry.sdk.trace.id_generator import IdGenerator  # noqa: PLC0415

    class Given(IdGenerator):
        """Gives the IDs that are set."""

        def generate_span_id(self) -> int:
            return ids.span_id

        def generate_trace_id(self) -> int:
            return ids.trace_id

    return Given()
