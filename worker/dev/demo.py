"""The demo: varied requests, among them wrong and doomed ones, each with the reply it must get.

Knows nothing of how the stack is built; it is a producer like any other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from redis.asyncio import Redis

from worker.client import DispatchClient, MessageKey, Reply, Request, Sent, Verdict
from worker.core.instants import entry_time_ms
from worker.core.keys import Keys

FINAL_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what must become of it. `fields` is a raw entry, for what no client would send."""

    what: str
    verdict: Verdict
    exit_code: int | None = None
    error_code: str = ""
    request: Request | None = None
    fields: dict[bytes, bytes] | None = None

    def matches(self, reply: Reply) -> bool:
        """Whether a final reply is the expected one."""
        return (reply.verdict, reply.exit_code, reply.error_code) == (
            self.verdict,
            self.exit_code,
            self.error_code,
        )


CASES = (
    Case("succeeds", Verdict.SUCCEEDED, 0, request=Request("demo-render")),
    Case(
        "meta reaches the task",
        Verdict.SUCCEEDED,
        0,
        request=Request("demo-render", meta={"who": "ada", "seconds": "0.3"}),
    ),
    Case(
        "exits with code 3",
        Verdict.FAILED,
        3,
        "job.failed",
        request=Request("demo-render", meta={"code": "3"}),
    ),
    Case(
        "payload reaches the task",
        Verdict.SUCCEEDED,
        0,
        request=Request("demo-encode", payload=b'{"input": "clip.mp4"}', meta={"tenant": "acme"}),
    ),
    Case(
        "lacks required meta",
        Verdict.REJECTED,
        error_code="nomad.meta_missing",
        request=Request("demo-encode", payload=b"{}"),
    ),
    Case(
        "poison: no job, bad meta",
        Verdict.REJECTED,
        error_code="request.field_missing",
        fields={b"meta": b"\xff not json", b"payload": b"\x00\x01"},
    ),
    Case(
        "no such job",
        Verdict.REJECTED,
        error_code="nomad.job_unknown",
        request=Request("demo-nowhere"),
    ),
    Case("fails once, restarted", Verdict.SUCCEEDED, 0, request=Request("demo-flaky")),
    Case(
        "fails too often",
        Verdict.FAILED,
        1,
        "job.failed",
        request=Request("demo-flaky", meta={"failures": "3"}),
    ),
    Case("detached", Verdict.DETACHED, request=Request("demo-render", detach=True)),
    Case(
        "runs too long, is stopped",
        Verdict.TIMED_OUT,
        137,
        "job.timed_out",
        request=Request("demo-render", meta={"seconds": "60"}, timeout_seconds=1.0),
    ),
    Case(
        "deadline has passed",
        Verdict.EXPIRED,
        error_code="request.expired",
        request=Request("demo-render", deadline_ms=0),
    ),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case. `reply` is None when none came in time."""

    case: Case
    sent: Sent
    reply: Reply | None

    @property
    def as_expected(self) -> bool:
        """Whether the right final reply came."""
        return self.reply is not None and self.case.matches(self.reply)


async def demo(
    client: DispatchClient, redis: Redis, keys: Keys, number: int, done: Callable[[], None]
) -> list[Result]:
    """Send `number` requests at once, the cases in turn, and wait for every final reply.

    Args:
        client: the producer's client.
        redis: for the entries that the client would refuse to send.
        keys: the worker's.
        number: how many.
        done: called for each final reply.
    """

    async def one(case: Case) -> Result:
        sent = await (client.send(case.request) if case.request else _send_raw(redis, keys, case))
        try:
            reply = await client.wait(sent, timeout=FINAL_SECONDS)
        except TimeoutError:
            reply = None
        done()
        return Result(case, sent, reply)

    running: list[Awaitable[Result]] = [one(case) for case in islice(cycle(CASES), number)]
    return list(await asyncio.gather(*running))


async def _send_raw(redis: Redis, keys: Keys, case: Case) -> Sent:
    fields: dict[Any, Any] = {**(case.fields or {})}
    entry_id: Any = await redis.xadd(keys.stream("requests"), fields)
    key = MessageKey("requests", entry_id.decode())
    return Sent(key.stream, key.id, keys.replies, f"{entry_time_ms(key.id) - 1}-0")
