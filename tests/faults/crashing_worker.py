"""A worker with faults planned at named calls of its ports: it is killed, paused or hung exactly there.

`python -m tests.faults.crashing_worker` runs the product's own daemon; only the adapters that `wiring` puts
in are replaced, by subclasses that carry out the plan in `FAULT_PLAN`.
"""

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from worker.adapters.nomad.client import NomadClient
from worker.adapters.redis import leases, ledger, queue, records
from worker.adapters.redis.inbox import RedisInbox
from worker.adapters.redis.leases import RedisLeases
from worker.adapters.redis.ledger import RedisLedger
from worker.core.model import Order
from worker.errors import NomadTimeout, RedisUnavailable
from worker.runtime import app, wiring
from worker.settings import load

PORTS: dict[str, tuple[str, type]] = {
    "inbox": ("RedisInbox", RedisInbox),
    "leases": ("RedisLeases", RedisLeases),
    "ledger": ("RedisLedger", RedisLedger),
    "nomad": ("NomadClient", NomadClient),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What happens at one call.

    `call` is `<port>.<method>`, for `ledger.keep` with the fact behind a colon: `ledger.keep:Intended`.
    """

    call: str
    do: str
    when: str = "before"
    nth: int = 1
    """Which of the matching calls; 0: each. Reads that bring nothing do not count."""


async def act(step: Step) -> None:
    """Carry a step out."""
    match step.do:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "block":
            time.sleep(3600)  # noqa: ASYNC251 - the event loop is what is to be blocked
        case "hang":
            await asyncio.Event().wait()
        case "break":
            message = "broken on purpose"
            raise RuntimeError(message)
        case "lose" if step.call.startswith("nomad."):
            message = "the answer was lost on purpose"
            raise NomadTimeout(message)
        case "lose":
            message = "the answer was lost on purpose"
            raise RedisUnavailable(message)


def carried_out(steps: list[Step], original: Callable[..., Any]) -> Callable[..., Any]:
    """A port's method with its steps."""
    counts = {step: itertools.count(1) for step in steps}

    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        due = [step for step in steps if _matches(step, args)]
        if any(step.do == "deaf" for step in due):
            await asyncio.sleep(0.05)
            return []
        if any(step.do == "forget_token" for step in due):
            args = tuple(replace(part, token="") if isinstance(part, Order) else part for part in args)
        for step in due:
            if step.when == "before" and step.nth in {0, next(counts[step])}:
                await act(step)
        answer = await original(self, *args, **kwargs)
        for step in due:
            counts_too = answer or step.call != "inbox.read"
            if step.when == "after" and counts_too and step.nth in {0, next(counts[step])}:
                await act(step)
        return answer

    return call


def _matches(step: Step, args: tuple[Any, ...]) -> bool:
    _, _, fact = step.call.partition(":")
    return not fact or any(type(part).__name__ == fact for part in args)


def put_in(plan: list[Step]) -> None:
    """Have `wiring` use adapters that follow the plan. The rehearsal at start keeps the real ones."""
    for port, (name, original) in PORTS.items():
        methods: dict[str, Any] = {}
        for step in plan:
            owner, _, method = step.call.partition(":")[0].partition(".")
            if owner == port:
                steps = [other for other in plan if other.call.partition(":")[0] == f"{port}.{method}"]
                methods[method] = carried_out(steps, getattr(original, method))
        if methods:
            setattr(wiring, name, type(name, (original,), methods))


def skew(seconds: float) -> None:
    """Let the host's wall clock be wrong."""
    true_time = time.time
    time.time = lambda: true_time() + seconds


def be_of_version(version: int) -> None:
    """Write and understand ledgers of another version only, as a worker of another release does."""
    for module in (ledger, leases, queue, records):
        module.LEDGER_VERSION = version  # type: ignore[attr-defined]


if __name__ == "__main__":
    if version := os.environ.get("FAULT_LEDGER_VERSION"):
        be_of_version(int(version))
    skew(float(os.environ.get("FAULT_CLOCK_SKEW_SECONDS", "0")))
    put_in([Step(**step) for step in json.loads(os.environ.get("FAULT_PLAN", "[]"))])
    raise SystemExit(app.run(load()))
