"""Checks at start that this Redis and this user can do all the worker will ask of them.

Redis checks a script's commands against the caller's rights only when they run, so a missing right would
show on the first dead letter, at night. Here every script runs once, on keys of its own.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError

from worker.adapters.redis.cancels import RedisCancels
from worker.adapters.redis.connection import FAILURES, translate
from worker.adapters.redis.inbox import RedisInbox
from worker.adapters.redis.leases import LeaseOptions, RedisLeases
from worker.adapters.redis.ledger import LedgerOptions, RedisLedger
from worker.adapters.redis.queue import RedisQueue
from worker.adapters.redis.scripts import ScriptRunner
from worker.core.keys import Keys
from worker.core.lifecycle import (
    DispatchPutOff,
    Ended,
    Intended,
    JobAccepted,
    Parked,
    Progressed,
    Repeated,
    StopOrdered,
    advance,
)
from worker.core.model import Outcome, Progress, Record, Routing, Run, Verdict
from worker.core.policy import Policy
from worker.errors import RedisUnsuitable
from worker.ports import Admission, Clock

OLDEST = (6, 2)
_GROUP = "selftest"


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What the server says of itself. `warnings` are sentences for a person; empty: nothing to fix."""

    version: str
    warnings: tuple[str, ...]


async def inspect(redis: Any) -> ServerReport:
    """Check version, eviction and persistence.

    Raises:
        RedisUnsuitable: older than 6.2.
        RedisUnavailable, RedisDenied.
    """
    try:
        server: Mapping[str, Any] = await redis.info("server")
        version = str(server["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            message = f"Redis {version} is too old: the worker needs 6.2 or newer"
            raise RedisUnsuitable(message)
        warnings = [*await _eviction(redis), *await _persistence(redis)]
    except NoPermissionError:
        # INFO and CONFIG are often withheld; the scripts' own test below is what must pass.
        return ServerReport("unknown", ())
    except FAILURES as error:
        raise translate(error) from error
    return ServerReport(version, tuple(warnings))


async def _eviction(redis: Any) -> list[str]:
    memory = await redis.info("memory")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        return [f"maxmemory-policy is {policy}: ledger entries may be evicted; set it to noeviction"]
    return []


async def _persistence(redis: Any) -> list[str]:
    persistence = await redis.info("persistence")
    if not int(persistence.get("aof_enabled", 0)):
        return ["appendonly is off: a crash of Redis loses the messages of its last seconds"]
    return []


async def rehearse(redis: Any, keys: Keys, clock: Clock) -> None:
    """Run every script once on keys below `<prefix>:selftest:`, and remove them.

    Raises:
        RedisDenied: the user lacks a right; the message names the command.
        RedisUnavailable.
    """
    own = Keys(f"{keys.prefix}:selftest:{secrets.token_hex(4)}")
    runner = ScriptRunner(redis)
    try:
        await _rehearse(redis, runner, own, clock)
    except FAILURES as error:
        raise translate(error) from error
    finally:
        await runner.close()
        await _remove(redis, own)


async def _rehearse(redis: Any, runner: ScriptRunner, keys: Keys, clock: Clock) -> None:
    inbox = RedisInbox(
        redis, redis, keys, streams={"requests": 1}, group=_GROUP, consumer="first", block_ms=1
    )

    def leases_of(worker: str) -> RedisLeases:
        options = LeaseOptions(worker, _GROUP, lease_ms=60_000, streams=["requests"], about={"v": "1"})
        return RedisLeases(runner, runner, redis, keys, options)

    def ledger_of(worker: str) -> RedisLedger:
        options = LedgerOptions(worker, _GROUP, quarantine_ms=1, retention_ms=60_000, reply_maxlen=10)
        return RedisLedger(redis, runner, keys, clock, options)

    first, second = ledger_of("first"), ledger_of("second")
    await inbox.prepare()
    await leases_of("first").beat()
    await redis.xadd(keys.stream("requests"), {"job": "selftest"})
    (entry,) = await inbox.read(1)
    record = await first.admit(
        Admission(entry.key, entry.key.id, Routing(job="selftest", idempotency_key="selftest"))
    )
    if record is None:
        message = "an entry just read could not be admitted"
        raise RedisUnsuitable(message)
    queue = RedisQueue(redis, runner, keys, worker="first", group=_GROUP)
    record = await _rehearse_queue(queue, first, record)
    record = await first.keep(record, Intended(0))
    record = await first.keep(record, DispatchPutOff("selftest", 0))
    record = await first.keep(record, Intended(0))
    record = await first.keep(record, JobAccepted("selftest", "selftest", 0))
    record = await first.keep(record, Progressed(Progress.RUNNING, 0))
    record = await first.keep(record, StopOrdered(Verdict.TIMED_OUT, 0))
    run = Run(record.attempt, record.job_id, Verdict.TIMED_OUT)
    await first.keep(record, Repeated(run, 0))
    await inbox.mine()
    cancels = RedisCancels(redis, keys, block_ms=1)
    await cancels.open()
    await cancels.listen()

    await leases_of("first").release()
    (dead,) = await leases_of("second").dead()
    (taken,) = await leases_of("second").take(dead, 1)
    await second.settle(advance(taken, Ended(Outcome(Verdict.REJECTED, error_code="selftest"))))
    await second.recall(entry.key)
    await inbox.fetch([entry.key])
    await leases_of("second").retire()
    await leases_of("second").trim()
    # What a sweep deletes with, once there is enough to sweep.
    await redis.xdel(keys.stream("requests"), "0-1")
    await leases_of("second").expire_dead(0, 0)
    await leases_of("second").expire_dead(0, 0)


async def _rehearse_queue(queue: RedisQueue, ledger: RedisLedger, record: Record) -> Record:
    """Let the message wait, first for its time, then for its turn under limits of every kind."""
    scopes = ("streams", "jobs", "namespaces", "tenants")
    limits = {scope: {"*": {"cap": 1, "per_second": 1.0}} for scope in scopes}
    policy = Policy.parse({"limits": {"cap": 1, **limits}})
    parked = await ledger.keep(record, Parked(1, 2))
    await queue.mend(parked.key.stream)
    ((record, _),) = (await queue.pick(parked.key.stream, 1, policy)).messages
    await ledger.keep(record, Parked(0, 0))
    ((record, _),) = (await queue.pick(parked.key.stream, 1, policy)).messages
    await queue.occupy(record, policy)
    await queue.recount()
    return record


async def _remove(redis: Any, keys: Keys) -> None:
    """Delete what the rehearsal wrote; all of it is known by name except the one message."""
    names = [
        *(keys.stream("requests"), keys.replies, keys.dead, keys.dead_notice, keys.workers),
        *(keys.floor("requests"), keys.worker("first"), keys.worker("second"), keys.rates),
        *(*keys.waiting("requests"), *keys.caps),
    ]
    try:
        for name in names:
            await redis.unlink(name)
    except FAILURES:
        # Left behind at worst: some small keys whose names say what they are. The ledger entry expires.
        return
