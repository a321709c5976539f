"""Asks Redis whether what was just written would survive: on a replica, or on disk.

Decides nothing about what follows from the answer. It narrows the window in which a failover loses
acknowledged writes; it cannot close it.
"""

from enum import StrEnum
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import ResponseError

from worker.adapters.redis.connection import FAILURES, translate
from worker.errors import RedisUnsuitable

CONFIRM_MS = 500
"""How long Redis may take to answer: a replica within reach confirms in a millisecond or two, and everything
else on the connection waits as long."""


class Durability(StrEnum):
    """What an intent must survive before Nomad is asked."""

    NONE = "none"
    """The primary's own persistence, as it is configured."""
    REPLICA = "replica"
    """At least one replica has it (WAIT)."""
    AOF = "aof"
    """The primary has it on disk (WAITAOF, Redis 7.2)."""

    @property
    def command(self) -> tuple[str | int, ...]:
        """What asks for it; on the connection of the write. Empty: nothing does."""
        match self:
            case Durability.REPLICA:
                return ("WAIT", 1, CONFIRM_MS)
            case Durability.AOF:
                return ("WAITAOF", 1, 0, CONFIRM_MS)
            case _:
                return ()

    @staticmethod
    def confirms(answer: Any) -> bool:
        """Whether an answer says so. Redis answers in time whatever it found: the number is what counts."""
        local = answer[0] if isinstance(answer, list) and answer else answer
        return isinstance(local, int) and local >= 1


async def require(redis: Any, durability: Durability) -> None:
    """Check at start that this server and this user can be asked.

    Raises:
        RedisUnsuitable: the server does not know the command, or writes no append-only file.
        RedisDenied, RedisUnavailable.
    """
    if durability is Durability.NONE:
        return
    # Of nobody, and at once: whether there is a replica now is not what decides over starting.
    trial = ("WAIT", 0, 1) if durability is Durability.REPLICA else ("WAITAOF", 1, 0, 1)
    try:
        if isinstance(redis, RedisCluster):
            await redis.initialize()
            await redis.execute_command(*trial, target_nodes=redis.get_primaries()[0])
        else:
            await redis.execute_command(*trial)
    except FAILURES as error:
        if isinstance(error, ResponseError) and "appendonly" in str(error):
            message = "WORKER_DURABILITY=aof needs appendonly yes on the server"
            raise RedisUnsuitable(message) from error
        named = translate(error)
        if isinstance(named, RedisUnsuitable):
            message = f"WORKER_DURABILITY={durability} needs {trial[0]}, which this server does not know"
            raise RedisUnsuitable(message) from error
        raise named from error
