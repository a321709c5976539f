"""What this worker tells of itself: whether it is ready, and what it has in hand.

Decides nothing; everything is looked up when somebody asks, or once a second for readiness.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from worker.runtime.wiring import Parts

READINESS_SECONDS = 0.5
IN_FLIGHT_SHOWN = 1_000


async def judge_readiness(parts: Parts, ready: asyncio.Event, tick: Callable[[], None]) -> None:
    """Keep the conditions of readiness true, for ever; `ready` is set when all hold for the first time.

    It calls `tick` on every round: /readyz would say for ever what was true once, if it stalled.
    """
    while True:
        tick()
        parts.health.condition(
            "redis",
            ok=parts.lease.remaining_seconds > 0,
            reason="the lease in Redis could not be renewed in time",
        )
        parts.health.condition(
            "nomad", ok=parts.gate.is_open, reason=f"dispatching is paused after repeated {parts.gate.reason}"
        )
        lost = [feed.name for feed in parts.feeds if not feed.connected]
        parts.health.condition("events", ok=not lost, reason=f"no event stream for {', '.join(lost)}")
        if not parts.health.not_ready():
            ready.set()
        await asyncio.sleep(READINESS_SECONDS)


async def status(parts: Parts) -> Mapping[str, Any]:
    """JSON for people and scripts: streams, replicas, and this worker's messages (the oldest first).

    Raises:
        RedisUnavailable, RedisDenied.
    """
    backlog = await parts.survey.backlog()
    workers = await parts.survey.workers()
    now_ms = parts.clock.now_ms()
    messages = [message for message in parts.pipeline.messages if message.record is not None]
    return {
        "worker": parts.settings.name,
        "ready": not parts.health.not_ready(),
        "reasons": parts.health.not_ready(),
        "streams": {
            name: {
                "lag": stream.lag,
                "pending": stream.pending,
                "queued": stream.queued,
                "delayed": stream.delayed,
                "oldest_queued_seconds": stream.oldest_queued_seconds,
                "oldest_pending_seconds": stream.oldest_pending_seconds,
            }
            for name, stream in backlog.streams.items()
        },
        "dead_letters": backlog.dead_letters,
        "policy": {"version": parts.policy_file.version, "fault": parts.policy_file.fault},
        "workers": [
            {
                "name": worker.name,
                "lease_remaining_seconds": round(worker.lease_remaining_seconds, 3),
                **worker.about,
            }
            for worker in workers
        ],
        "dispatches": {
            "limit": parts.slots.limit,
            "most": parts.settings.dispatch_concurrency,
            "brake": parts.slots.brake,
        },
        "in_flight": len(parts.pipeline),
        "messages": [
            {
                "stream": message.key.stream,
                "id": message.key.id,
                "job": message.job,
                "phase": message.phase,
                "step": message.record.shown if message.record else "",
                "dispatched_job_id": message.record.job_id if message.record else "",
                "age_seconds": (now_ms - message.record.received_at_ms) / 1000 if message.record else None,
            }
            for message in messages[:IN_FLIGHT_SHOWN]
        ],
    }
