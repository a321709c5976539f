"""One connection of a pool for one caller at a time, kept between its exchanges.

Knows nothing of what is exchanged. To take a connection from redis-py's pool and give it back costs as much
as the exchange of a script or two.
"""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ReadOnlyError

from worker.adapters.redis.connection import FAILURES


class HeldConnection:
    """Exchanges commands whose repetition is safe.

    Args:
        pool: of connections that have `exchange`, see `wire`.
        keep: hold the connection from one exchange to the next, until `close`. Not for a pool whose few
            connections others need.
    """

    def __init__(self, pool: Any, *, keep: bool) -> None:
        self._pool = pool
        self._keep = keep
        self._held: Any = None

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Write commands in one go, and again on a new connection as often as the client's settings say.

        Returns:
            The answers in order; a refusal is a ResponseError among them.

        Raises:
            RedisError, OSError: no answers.
        """
        connection = self._held or await self._pool.get_connection()
        self._held = connection
        try:
            answers = await _exchange(connection, commands)
            if any(type(answer) is ReadOnlyError for answer in answers):
                # Where sentinels name the master, only a new connection asks them.
                await connection.disconnect(nowait=True)
        finally:
            if not self._keep:
                await self.close()
        return answers

    async def close(self) -> None:
        """Give the connection back."""
        if self._held is not None:
            held, self._held = self._held, None
            await self._pool.release(held)


async def _exchange(connection: Any, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
    left = connection.retry.get_retries()
    while True:
        try:
            await _ready(connection)
            answers: Sequence[Any] = await connection.exchange(commands)
        except FAILURES:
            if not left:
                raise
            left -= 1
        else:
            return answers


async def _ready(connection: Any) -> None:
    """Connect, unless the connection is sound: open, and with nothing left of an earlier exchange."""
    if connection.is_connected:
        if not await connection.can_read():
            return
        await connection.disconnect(nowait=True)
    await connection.connect()
