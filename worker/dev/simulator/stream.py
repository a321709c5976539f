"""GET /v1/event/stream: frames and heartbeats on one connection, and the silence of a refused stream.

Knows nothing of what the events mean.
"""

import asyncio
import contextlib
from collections import deque

from aiohttp import web

from worker.dev.simulator.acl import Denied, UnknownSignature
from worker.dev.simulator.call import Call, Fail
from worker.dev.simulator.events import BadStream, Frame, Subscription

_HEARTBEAT = b"{}\n"
_LOOK_SECONDS = 1.0
"""How often a silent stream looks whether its client has gone."""


class _Response(web.StreamResponse):
    """An answer whose end is the end of the connection: neither chunks nor a length, as Nomad sends it."""

    _length_check = False


class EventStream:
    """One open stream."""

    def __init__(self, call: Call, subscription: Subscription) -> None:
        self.muted = call.cluster.faults.mute_new_streams
        self._call = call
        self._cluster = call.cluster
        self._subscription = subscription
        self._frames: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._dead = False

    def close(self) -> None:
        """End the stream: the client reads an end of file."""
        self._closed = True
        self._wake.set()

    def deliver(self, frame: Frame) -> None:
        """Take a frame from the ring."""
        self._frames.append(frame)
        self._wake.set()

    async def run(self) -> web.StreamResponse:
        """Serve the stream until either side ends it."""
        response = _Response(headers={"Content-Type": "application/json", "Cache-Control": "no-cache"})
        response.force_close()
        self._cluster.faults.streams.add(self)
        life = self._cluster.faults.new_stream_life()
        cut = asyncio.get_running_loop().call_later(life, self.close) if life is not None else None
        self._dead = not self._allowed()
        # Listen first, then replay: nothing can slip in between, as there is no await.
        self._cluster.ring.listen(self.deliver)
        self._frames.extend(self._cluster.ring.since(self._subscription.index))
        try:
            await response.prepare(self._call.request)
            with contextlib.suppress(ConnectionError):
                await self._serve(response)
        finally:
            if cut is not None:
                cut.cancel()
            self._cluster.ring.forget(self.deliver)
            self._cluster.faults.streams.discard(self)
        return response

    async def _serve(self, response: web.StreamResponse) -> None:
        loop = asyncio.get_running_loop()
        beat_seconds = self._cluster.options.heartbeat_seconds
        next_beat = loop.time()
        while not self._closed and not self._gone():
            if self._dead or self.muted:
                self._frames.clear()
            elif loop.time() >= next_beat:
                next_beat = loop.time() + beat_seconds
                # A deleted token ends the heartbeats; an expired one only the events.
                if self._known():
                    await response.write(_HEARTBEAT)
                else:
                    self._dead = True
                    continue
            if lines := self._take():
                await response.write(lines)
            self._wake.clear()
            if self._frames or self._closed:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(next_beat - loop.time(), 0.001), _LOOK_SECONDS)):
                    await self._wake.wait()

    def _take(self) -> bytes:
        """Return the lines of the frames that wait; none if the token no longer allows them."""
        lines = []
        while self._frames and not self._dead:
            frame = self._subscription.select(self._frames.popleft())
            if frame is None:
                continue
            if not self._allowed():
                self._dead = True
                break
            lines.append(frame.line())
        return b"".join(lines)

    def _gone(self) -> bool:
        transport = self._call.request.transport
        return transport is None or transport.is_closing()

    def _allowed(self) -> bool:
        """Whether events may be delivered now."""
        if self._call.query.get("region", "global") not in {"", "global"}:
            return False
        try:
            token = self._call.acl.resolve(self._call.secret(), self._cluster.now())
        except (Denied, UnknownSignature):
            return False
        wanted = self._subscription
        return self._call.acl.may_stream(
            token, wanted.topics, wanted.namespace, self._cluster.state.namespaces
        )

    def _known(self) -> bool:
        """Whether the token exists still, expired or not, and its policies cover the stream."""
        if self._allowed():
            return True
        token = self._call.acl.tokens.get(self._call.secret())
        return token is not None and bool(token.expires) and token.expires <= self._cluster.now()


async def event_stream(call: Call) -> web.StreamResponse:
    """Open a stream. A refused one is answered with 200 and silence; only a bad query has a status."""
    call.allow("GET")
    topics = call.request.query.getall("topic", [])
    try:
        subscription = Subscription.parse(topics, call.namespace, call.query.get("index", ""))
    except BadStream as error:
        raise Fail(400, str(error)) from None
    return await EventStream(call, subscription).run()
