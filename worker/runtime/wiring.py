"""Builds one worker out of its settings: the only place where flow and adapters meet.

Decides nothing beyond who is handed what.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker import __version__
from worker.adapters.nomad.calls import READS_AT_ONCE
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.adapters.redis.cancels import RedisCancels
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.adapters.redis.durability import Durability
from worker.adapters.redis.inbox import RedisInbox
from worker.adapters.redis.leases import LeaseOptions, RedisLeases
from worker.adapters.redis.ledger import LedgerOptions, RedisLedger
from worker.adapters.redis.queue import RedisQueue
from worker.adapters.redis.scripts import ScriptRunner
from worker.adapters.redis.survey import RedisSurvey
from worker.core.keys import Keys
from worker.core.model import MessageKey, Place
from worker.core.pace import Pace
from worker.core.request import Limits
from worker.errors import RedisUnconfirmed
from worker.flow.admit import Admit
from worker.flow.cancel import CancelFeed
from worker.flow.children import Children
from worker.flow.dispatch import Dispatch
from worker.flow.feed import Feed
from worker.flow.gate import Gate
from worker.flow.intake import Intake
from worker.flow.lease import MARGIN_SECONDS, Lease
from worker.flow.pipeline import Pipeline
from worker.flow.queue import Turns, Waiting
from worker.flow.repeat import Repeat
from worker.flow.settle import Settle
from worker.flow.slots import Slots
from worker.flow.watch import Watch
from worker.ports import Inbox, Leases, Ledger, Queue
from worker.runtime.clock import SystemClock
from worker.runtime.health import Health
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.housekeeping import Housekeeping
from worker.runtime.lookout import Lookout
from worker.runtime.looplag import LoopLag
from worker.runtime.measured import measured
from worker.runtime.metrics import Local, Metrics
from worker.runtime.policy import PolicyFile
from worker.runtime.traces import Traces, traces_from_environment
from worker.settings import Settings


def _unheard(_secret: str) -> None:
    """For commands that log nothing."""


def redis_options(settings: Settings, learn: Callable[[str], None] = _unheard) -> RedisOptions:
    """How to reach Redis."""
    return RedisOptions(
        url=settings.redis_url.get_secret_value(),
        username=settings.redis_username,
        password_file=settings.redis_password_file,
        on_secret=learn,
        ca_file=settings.redis_ca_file,
        cert_file=settings.redis_cert_file,
        key_file=settings.redis_key_file,
        client_name=settings.name,
    )


def nomad_options(settings: Settings, learn: Callable[[str], None] = _unheard) -> NomadOptions:
    """How to reach Nomad."""
    return NomadOptions(
        address=settings.nomad_addr,
        region=settings.nomad_region,
        namespace=settings.nomad_namespace,
        token=settings.nomad_token.get_secret_value() if settings.nomad_token else "",
        token_file=settings.nomad_token_file,
        on_secret=learn,
        ca_cert=settings.nomad_cacert,
        ca_path=settings.nomad_capath,
        client_cert=settings.nomad_client_cert,
        client_key=settings.nomad_client_key,
        tls_server_name=settings.nomad_tls_server_name,
        skip_verify=settings.nomad_skip_verify,
        dispatch_timeout_seconds=settings.nomad_timeout_seconds,
        pool_size=settings.dispatch_concurrency + READS_AT_ONCE,
        silence_seconds=2 * settings.event_heartbeat_seconds + 5,
    )


def places(settings: Settings) -> list[Place]:
    """Where event streams are held: every configured region and namespace."""
    return [
        Place(region, namespace)
        for region in settings.allowed_regions
        for namespace in settings.allowed_namespaces
    ]


@dataclass(slots=True)
class Redis:
    """The connections to Redis: reads, operations and heartbeats do not wait for each other."""

    reader: Any
    ops: Any
    beat: Any
    runner: ScriptRunner
    beats: ScriptRunner

    @classmethod
    def connect(cls, settings: Settings, learn: Callable[[str], None]) -> "Redis":
        """Make the clients; nothing is sent yet."""
        options = redis_options(settings, learn)
        ops, beat = connect(options, Purpose.OPS), connect(options, Purpose.BEAT)
        reader = connect(options, Purpose.READER, block_seconds=settings.block_seconds)
        runner = ScriptRunner(ops, Durability(settings.durability), keep_connection=True)
        return cls(reader, ops, beat, runner, ScriptRunner(beat))

    async def close(self) -> None:
        """Finish what is under way, then close every connection."""
        await self.runner.close()
        await self.beats.close()
        for client in (self.reader, self.ops, self.beat):
            await client.aclose()


@dataclass(slots=True)
class Parts:
    """One worker, wired and not yet running."""

    settings: Settings
    keys: Keys
    clock: SystemClock
    health: Health
    metrics: Metrics
    redis: Redis
    nomad: NomadClient
    inbox: RedisInbox
    leases: Leases
    survey: RedisSurvey
    lease: Lease
    gate: Gate
    slots: Slots
    heartbeat: Heartbeat
    pipeline: Pipeline
    intake: Intake
    waiting: Waiting
    feeds: list[Feed]
    housekeeping: Housekeeping
    lookout: Lookout
    lag: LoopLag
    traces: Traces | None
    cancel_feed: CancelFeed
    policy_file: PolicyFile


def assemble(
    settings: Settings, failed: Callable[[BaseException], None], learn: Callable[[str], None] = _unheard
) -> Parts:
    """Wire one worker.

    Args:
        settings: checked.
        failed: told of every error after which the process cannot go on.
        learn: told of every secret read from a file, so that logs can mask it.
    """
    keys = Keys(settings.prefix)
    clock = SystemClock()
    health = Health(settings.stall_seconds)
    metrics = Metrics(
        settings.stream_names,
        places(settings),
        max_in_flight=settings.max_in_flight,
        version=__version__,
        revision=os.environ.get("SOURCE_REVISION", "unknown"),
    )
    policy_file = PolicyFile(settings.allow_file, metrics.policy_read)
    redis = Redis.connect(settings, learn)
    nomad = NomadClient(nomad_options(settings, learn), on_request=metrics.nomad_answered)
    streams, strict = {one.name: one.weight for one in settings.streams}, settings.stream_order == "strict"
    redis_inbox = RedisInbox(
        redis.reader,
        redis.ops,
        keys,
        streams=streams,
        group=settings.group,
        consumer=settings.name,
        block_ms=int(settings.block_seconds * 1000),
        ageing_seconds=settings.stream_ageing_seconds if strict else None,
    )
    inbox: Inbox = measured(redis_inbox, metrics.redis_answered)
    ledger: Ledger = measured(
        RedisLedger(redis.ops, redis.runner, keys, clock, _ledger_options(settings, metrics)),
        metrics.redis_answered,
    )
    leases: Leases = measured(
        RedisLeases(redis.beats, redis.runner, redis.ops, keys, _lease_options(settings)),
        metrics.redis_answered,
    )

    redis_queue = RedisQueue(
        redis.ops, redis.runner, keys, worker=settings.name, group=settings.group, ages=strict
    )
    queue: Queue = measured(redis_queue, metrics.redis_answered)

    lease, gate, children = Lease(clock, settings.lease_seconds), Gate(clock), Children(clock)
    lag = LoopLag(clock)
    pace = Pace(settings.dispatch_concurrency, adaptive=settings.dispatch_pace == "adaptive")
    slots = Slots(pace, clock, round_seconds=lambda: lag.round_seconds)
    dispatch = Dispatch(
        nomad,
        children,
        lease,
        gate,
        clock,
        metrics,
        slots=slots,
        max_takeovers=settings.max_takeovers,
    )
    feeds = {
        place: Feed(nomad, children, clock, metrics, place, sweep_seconds=settings.sweep_seconds)
        for place in places(settings)
    }
    watch = Watch(
        nomad,
        children,
        clock,
        sweep_soon=partial(_sweep_soon, feeds),
        placement_deadline_seconds=settings.placement_deadline_seconds,
    )
    traces = traces_from_environment(settings.prefix, settings.name, __version__, clock.now_ms)
    settle = Settle(
        ledger,
        nomad,
        clock,
        traces.told(metrics) if traces else metrics,
        log_tail_bytes=settings.log_tail_bytes,
        purge_finished=settings.purge_finished,
    )
    admit = Admit(
        inbox,
        ledger,
        _limits(settings, keys),
        lambda: policy_file.policy,
        settings.token_template,
        job_trace=_job_trace(settings, traces),
    )
    waiting = Waiting(
        queue,
        lease,
        gate,
        clock,
        metrics,
        lambda: policy_file.policy,
        _turns(settings),
        slots=slots,
        max_in_flight=settings.max_in_flight,
    )
    pipeline = Pipeline(
        admit,
        dispatch,
        watch,
        settle,
        ledger,
        clock,
        metrics,
        failed,
        repeat=Repeat(admit, clock, lambda: policy_file.policy),
        park=waiting.park,
    )
    waiting.serve(pipeline)
    intake = Intake(
        inbox,
        pipeline,
        lease,
        gate,
        clock,
        metrics,
        waiting,
        streams=settings.stream_names,
        max_waiting=settings.max_waiting,
    )
    heartbeat = Heartbeat(leases, lease, clock, lease_seconds=settings.lease_seconds, stalled=health.stalled)
    housekeeping = Housekeeping(
        leases,
        heartbeat,
        pipeline,
        intake,
        metrics,
        waiting,
        dead_retention_seconds=settings.dead_retention_seconds,
    )
    metrics.local = lambda: Local(
        in_flight=Counter(message.job for message in pipeline.messages if not message.passing),
        lease_remaining_seconds=lease.remaining_seconds,
        gate_open=gate.is_open,
        dispatch_limit=slots.limit,
        dispatch_brake=slots.brake,
        loop_round_seconds=lag.round_seconds,
        draining=pipeline.draining,
        undecided_oldest_seconds=_undecided_oldest_seconds(pipeline, clock),
    )
    survey = RedisSurvey(redis.ops, keys, streams=settings.stream_names, group=settings.group)
    return Parts(
        settings,
        keys,
        clock,
        health,
        metrics,
        redis,
        nomad,
        redis_inbox,
        leases,
        survey,
        lease,
        gate,
        slots,
        heartbeat,
        pipeline,
        intake,
        waiting,
        list(feeds.values()),
        housekeeping,
        Lookout(nomad, metrics, feeds, slots.pressed, waiting_limit=settings.nomad_waiting_limit),
        lag,
        traces,
        CancelFeed(
            RedisCancels(redis.reader, keys, block_ms=int(settings.block_seconds * 1000)),
            pipeline,
            clock,
            waiting.look_soon,
        ),
        policy_file,
    )


def _turns(settings: Settings) -> Turns:
    weights = {stream.name: stream.weight for stream in settings.streams}
    return Turns(weights, settings.stream_order == "strict", settings.stream_ageing_seconds)


def _job_trace(settings: Settings, traces: Traces | None) -> Callable[[MessageKey, str], str]:
    if not settings.trace_meta:
        return lambda _key, _given: ""
    # Without spans of its own the worker hands on what the producer gave.
    return traces.for_job if traces else lambda _key, given: given


def _undecided_oldest_seconds(pipeline: Pipeline, clock: SystemClock) -> float:
    due = [message.due_ms for message in pipeline.messages if message.undecided and not message.passing]
    return (clock.now_ms() - min(due)) / 1000 if due else 0.0


def _sweep_soon(feeds: Mapping[Place, Feed], place: Place) -> bool:
    """A message taken over may be of a place this worker was not configured for."""
    feed = feeds.get(place)
    if feed is not None:
        feed.sweep_soon()
    return feed is not None


def _limits(settings: Settings, keys: Keys) -> Limits:
    return Limits(
        keys,
        namespaces=settings.allowed_namespaces,
        regions=settings.allowed_regions,
        max_meta_bytes=settings.max_meta_bytes,
    )


def _ledger_options(settings: Settings, metrics: Metrics) -> LedgerOptions:
    # A dispatch sent by an owner that was paused right before sending: its lease, its request, a margin.
    quarantine_seconds = settings.nomad_timeout_seconds + settings.lease_seconds + MARGIN_SECONDS
    return LedgerOptions(
        worker=settings.name,
        group=settings.group,
        quarantine_ms=int(quarantine_seconds * 1000),
        retention_ms=settings.ledger_retention_seconds * 1000,
        reply_maxlen=settings.reply_maxlen,
        ui_address=settings.ui_base_url,
        on_unconfirmed=lambda: metrics.redis_answered("settle", RedisUnconfirmed.code, 0.0),
    )


def _lease_options(settings: Settings) -> LeaseOptions:
    return LeaseOptions(
        worker=settings.name,
        group=settings.group,
        lease_ms=int(settings.lease_seconds * 1000),
        streams=settings.stream_names,
        about={"version": __version__},
    )
