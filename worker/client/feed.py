"""One reader per reply stream for all waiting callers of a process, however many they are.

Knows nothing of requests; it hands each entry to those who follow its message.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

from worker.adapters.redis.connection import FAILURES, translate
from worker.client.errors import ClientClosed
from worker.client.exchange import Steps, look_up, page, settled
from worker.client.replies import Sent, StreamEntry, Thread, order, range_entries, stream_entries
from worker.core.backoff import Backoff
from worker.core.keys import Keys
from worker.core.model import MessageKey
from worker.core.reply import Reply
from worker.errors import RecordUnreadable, Then, WorkerError

BLOCK_MILLISECONDS = 1000
READ_COUNT = 500
RECENT_ENTRIES = 1000
"""Kept for callers that begin to follow just after a reply has passed by."""

_BACKOFF = Backoff(first_seconds=0.1, most_seconds=5.0)

Perform = Callable[[Steps[Any]], Awaitable[Any]]
"""Carries an exchange out and returns its result."""


class _Follower:
    def __init__(self, sent: Sent) -> None:
        self.sent = sent
        self.arrivals: asyncio.Queue[StreamEntry | Reply | Exception] = asyncio.Queue()
        self.missed: tuple[str, str] | None = None
        """First and last ID of what passed before it joined and is not kept here any more."""
        self.settled_at_last_poll = False


class ReplyFeed:
    """The replies in one reply stream, while anybody follows one of its messages."""

    def __init__(self, reader: Any, perform: Perform, keys: Keys, stream: str, poll_seconds: float) -> None:
        self._reader = reader
        self._perform = perform
        self._keys = keys
        self._stream = stream
        self._poll_seconds = poll_seconds
        self._followers: dict[MessageKey, set[_Follower]] = {}
        self._recent: deque[StreamEntry] = deque()
        self._recent_after = "0-0"
        """`_recent` holds every entry after this one, up to `_position`."""
        self._position = "0-0"
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    async def follow(self, sent: Sent) -> AsyncGenerator[Reply, None]:
        """The replies to one message, each once, ending with the final one.

        Raises:
            WorkerError: Redis refuses to answer for good. Outages are waited out.
            ClientClosed: the feed was closed.
        """
        follower = self._join(sent)
        thread = Thread(sent.key)
        try:
            async with aclosing(self._arrivals(follower)) as arrivals:
                async for arrival in arrivals:
                    reply = arrival if isinstance(arrival, Reply) else thread.take(arrival)
                    if reply is not None:
                        yield reply
                        if reply.final:
                            return
        finally:
            self._leave(follower)

    async def close(self) -> None:
        """End the reader; whoever still follows gets `ClientClosed`."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tell_all(ClientClosed("the client was closed"))

    def _join(self, sent: Sent) -> _Follower:
        if self._closed:
            message = "the client is closed"
            raise ClientClosed(message)
        follower = _Follower(sent)
        self._followers.setdefault(sent.key, set()).add(follower)
        if self._is_over("read"):
            self._recent.clear()
            self._recent_after = self._position = sent.replies_after
            self._start("read", self._read)
        elif order(sent.replies_after) < order(self._recent_after):
            follower.missed = (sent.replies_after, self._recent_after)
        if self._is_over("poll"):
            self._start("poll", self._poll)
        for entry in self._recent:
            if _message_of(entry) == sent.key:
                follower.arrivals.put_nowait(entry)
        return follower

    def _leave(self, follower: _Follower) -> None:
        key = follower.sent.key
        self._followers[key].discard(follower)
        if not self._followers[key]:
            del self._followers[key]

    def _is_over(self, name: str) -> bool:
        return name not in self._tasks or self._tasks[name].done()

    def _start(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks[name] = asyncio.create_task(self._guarded(run), name=f"replies.{name}")

    async def _guarded(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - the edge of a task: its followers must hear of any end
            self._tell_all(error)

    def _tell_all(self, error: Exception) -> None:
        for follower in self._everyone():
            follower.arrivals.put_nowait(error)

    def _everyone(self) -> Iterable[_Follower]:
        return [follower for followers in self._followers.values() for follower in followers]

    async def _arrivals(self, follower: _Follower) -> AsyncGenerator[StreamEntry | Reply, None]:
        """What passed before the follower joined, page by page, then what comes."""
        after, last = follower.missed or ("0-0", "0-0")
        failures = 0
        while order(after) < order(last):
            try:
                entries = range_entries(await self._perform(page(self._stream, after, last)))
            except WorkerError as error:
                failures += 1
                await _pause_or_raise(error, failures)
                continue
            failures = 0
            for entry in entries:
                yield entry
            after = entries[-1][0] if entries else last
        while True:
            arrival = await follower.arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            yield arrival

    async def _read(self) -> None:
        failures = 0
        while self._followers:
            try:
                answer = await self._reader.xread(
                    {self._stream: self._position}, count=READ_COUNT, block=BLOCK_MILLISECONDS
                )
            except FAILURES as error:
                failures += 1
                await _pause_or_raise(translate(error), failures)
                continue
            failures = 0
            for entry in stream_entries(answer):
                self._position = entry[0]
                self._keep(entry)
                for follower in self._followers.get(_message_of(entry), ()):
                    follower.arrivals.put_nowait(entry)

    def _keep(self, entry: StreamEntry) -> None:
        self._recent.append(entry)
        if len(self._recent) > RECENT_ENTRIES:
            self._recent_after, _ = self._recent.popleft()

    async def _poll(self) -> None:
        """Ask the ledger now and then: a final reply may have been trimmed before it was read."""
        while self._followers:
            await asyncio.sleep(self._poll_seconds)
            try:
                done = set(await self._perform(settled(self._keys, list(self._followers))))
                for follower in self._everyone():
                    if follower.sent.key in done:
                        await self._deliver_from_ledger(follower)
            except WorkerError as error:
                # The reader waits for the end of outages; here the next round is soon enough.
                if error.then is not Then.RETRY:
                    raise

    async def _deliver_from_ledger(self, follower: _Follower) -> None:
        # The first time, the reader may just not have come to it: it brings the earlier replies too.
        if not follower.settled_at_last_poll:
            follower.settled_at_last_poll = True
            return
        try:
            reply = await self._perform(look_up(self._keys, follower.sent.key))
        except RecordUnreadable as error:
            follower.arrivals.put_nowait(error)  # this message's alone: the others go on
        else:
            if reply is not None:
                follower.arrivals.put_nowait(reply)


def _message_of(entry: StreamEntry) -> MessageKey:
    fields = entry[1]
    return MessageKey(
        fields.get(b"stream", b"").decode(errors="replace"), fields.get(b"id", b"").decode(errors="replace")
    )


async def _pause_or_raise(error: WorkerError, failures: int) -> None:
    if error.then is not Then.RETRY:
        raise error
    await asyncio.sleep(_BACKOFF.delay(failures, random.random()))  # noqa: S311 - spreads load, hides nothing
