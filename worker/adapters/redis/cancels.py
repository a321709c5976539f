"""Orders to cancel messages: a list of the open ones, and a stream that wakes this worker up for new ones.

Only reads; the producer's script writes both, and settling a message takes it off the list.
"""

from collections.abc import Sequence
from typing import Any

from worker.adapters.redis.connection import FAILURES, translate
from worker.core.keys import Keys
from worker.core.model import MessageKey

READ_COUNT = 500


class RedisCancels:
    """Implements `ports.Cancels`.

    Args:
        reader: a client without retries whose socket timeout exceeds `block_ms`.
    """

    def __init__(self, reader: Any, keys: Keys, *, block_ms: int) -> None:
        self._reader = reader
        self._keys = keys
        self._block_ms = block_ms
        self._position: bytes | None = None

    async def open(self) -> Sequence[MessageKey]:
        """See `ports.Cancels.open`."""
        try:
            if self._position is None:
                # Before the list is read, so that an order in between is heard of by one or the other.
                self._position = await self._last()
            members = await self._reader.zrange(self._keys.cancels, 0, -1)
        except FAILURES as error:
            self._position = None
            raise translate(error) from error
        return [self._keys.message_of(member.decode()) for member in members]

    async def listen(self) -> Sequence[MessageKey]:
        """See `ports.Cancels.listen`."""
        try:
            if self._position is None:
                self._position = await self._last()
            answer = await self._reader.xread(
                {self._keys.control: self._position}, count=READ_COUNT, block=self._block_ms
            )
        except FAILURES as error:
            self._position = None
            raise translate(error) from error
        entries = _entries(answer)
        if entries:
            self._position = entries[-1][0]
        return [
            self._keys.message_of(fields[b"cancel"].decode()) for _, fields in entries if b"cancel" in fields
        ]

    async def _last(self) -> bytes:
        newest = await self._reader.xrevrange(self._keys.control, count=1)
        return newest[0][0] if newest else b"0-0"


def _entries(answer: Any) -> Sequence[Any]:
    """XREAD's entries: RESP3 gives a map with one more list around, RESP2 pairs."""
    if not answer:
        return []
    found: Sequence[Any] = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return found
