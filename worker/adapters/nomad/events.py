"""Follows one event stream: its first line, its heartbeats, the end of its connection.

Knows nothing of what an event means, and never reconnects: the caller reconciles first.

Nomad refuses a stream by answering 200 and staying silent, and a stream dies by falling silent. So silence is
what is watched here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from worker.adapters.nomad.calls import Calls, OnRequest, Operation
from worker.adapters.nomad.connection import TRANSPORT_FAILURES, NomadConnection
from worker.adapters.nomad.lines import LineCutter, Oversize
from worker.adapters.nomad.transport import Stream
from worker.core.frames import Frame, decode, oversize
from worker.core.model import Place
from worker.core.refusal import bounded
from worker.errors import FeedLost, FeedRefused, WorkerError

NEWEST_INDEX = 2**63 - 1
"""Far in the future: the stream begins with its newest frame. To Nomad, 0 means everything in its buffer."""

_TOPICS = (("topic", "Job"), ("topic", "Evaluation"), ("topic", "Allocation"))


async def follow(
    connection: NomadConnection,
    calls: Calls,
    place: Place,
    index: int,
    wanted: Callable[[str], bool],
    *,
    on_request: OnRequest,
) -> AsyncGenerator[Sequence[Frame], None]:
    """The frames of one event stream, those that come at once together; the first tells that it was accepted.

    Args:
        connection: opens a connection of its own for the stream.
        calls: names refusals.
        place: region and namespace of the stream.
        index: the first index wanted, inclusive; 0: from now on, beginning with the newest frame there is.
        wanted: asked with a dispatched job's ID; events of others are dropped.
        on_request: told once, when the headers are there or have failed to come.

    Raises:
        FeedRefused: no first line in time.
        FeedLost: it ended, broke, or was silent for too long. The time the reader takes before it asks for
            more does not count as silence; but a server closes on a reader that is stuck for 40 s.
        NomadUnavailable, NomadDenied: no stream came about.

    Source: Nomad HTTP API, GET /v1/event/stream.
    """
    options = connection.options
    opened_by = asyncio.get_running_loop().time() + options.first_line_seconds
    stream = await _open(connection, place, index, options.first_line_seconds, on_request)
    patience = None
    try:
        if not stream.is_success:
            raise await _refusal(stream, connection, calls)
        patience = _Patience(stream, opened_by, options.silence_seconds)
        cutter = LineCutter(options.line_limit_bytes)
        while True:
            lines = cutter.feed(await _next(stream, connection, patience))
            if lines:
                if not patience.accepted:
                    calls.reached.add(place.region)
                patience.pause()
                yield [_frame(line, wanted) for line in lines]
                patience.renew()
    finally:
        if patience is not None:
            patience.end()
        stream.close()


class _Patience:
    """Closes a stream that owes a line for too long.

    Its one timer is set anew when it has run out, not with every line, of which there are thousands a second.

    Args:
        stream: what is closed.
        deadline: of the first line, on the loop's clock.
        seconds: for each line after that, from when it is asked for.
    """

    def __init__(self, stream: Stream, deadline: float, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = deadline
        self._timer = self._loop.call_at(deadline, self._look)
        self.accepted = False
        """Whether there was a first line."""
        self.over = False
        """Whether the stream was closed for its silence."""

    def pause(self) -> None:
        """Lines have come, and no more are asked for yet."""
        self._deadline = None

    def renew(self) -> None:
        """More lines are asked for."""
        self._deadline = self._loop.time() + self._seconds
        if not self.accepted:
            self.accepted = True
            # The first line's time may be longer than all others'.
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def end(self) -> None:
        """The stream is over."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        # While no more lines are asked for: no deadline that is set later is earlier than that.
        deadline = now + self._seconds if self._deadline is None else self._deadline
        if deadline > now:
            self._timer = self._loop.call_at(deadline, self._look)
        else:
            self.over = True
            self._stream.close()


def _frame(line: bytes | Oversize, wanted: Callable[[str], bool]) -> Frame:
    return oversize(line.head, line.tail) if isinstance(line, Oversize) else decode(line, wanted)


async def _open(
    connection: NomadConnection, place: Place, index: int, timeout_seconds: float, on_request: OnRequest
) -> Stream:
    """The answer up to its headers."""
    query = (*_TOPICS, ("index", str(index or NEWEST_INDEX)))
    url = connection.url("/v1/event/stream", query, place)
    code, started = "error", time.perf_counter()
    try:
        async with asyncio.timeout(timeout_seconds):
            stream = await connection.open(url)
        code = str(stream.status)
    except TRANSPORT_FAILURES as error:
        raise connection.unreachable(error, Operation.EVENTS) from error
    finally:
        on_request(Operation.EVENTS, code, time.perf_counter() - started)
    return stream


async def _refusal(stream: Stream, connection: NomadConnection, calls: Calls) -> WorkerError:
    try:
        async with asyncio.timeout(connection.options.first_line_seconds):
            response = await stream.whole()
    except TRANSPORT_FAILURES as error:
        return connection.unreachable(error, Operation.EVENTS)
    return calls.refused(response, Operation.EVENTS)


async def _next(stream: Stream, connection: NomadConnection, patience: _Patience) -> bytes:
    """The next bytes, or the name for there being none."""
    accepted = patience.accepted
    try:
        if chunk := await stream.read():
            return chunk
        message = "the event stream ended" if accepted else "the event stream ended before its first line"
    except TRANSPORT_FAILURES as error:
        if patience.over:
            message = "the event stream fell silent" if accepted else "the event stream has no first line"
        else:
            message = f"the event stream broke: {bounded(connection.token.mask(str(error)))}"
    raise (FeedLost if accepted else FeedRefused)(message)
