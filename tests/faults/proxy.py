"""A TCP proxy that does to connections what networks do: delay, cut, swallow, half-open, reset.

Knows nothing of what it carries, except where it is told to watch for some bytes.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHUNK_BYTES = 65_536


@dataclass(eq=False)
class _Link:
    """One connection through the proxy: both of its ends."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    swallowed: bool = False


@dataclass
class Proxy:
    """Stands between the workers and one server on loopback; its settings may change at any time."""

    target_port: int
    port: int = 0
    delay_seconds: float = 0.0
    """Before each chunk goes on, either way."""
    swallow: bool = False
    """Black hole: connections stay open and are accepted, and no byte passes any more."""
    refuse: bool = False
    """New connections are reset at once."""
    reset_after_bytes: int | None = None
    """How many more bytes of answers pass; then the connection that wanted more is reset."""
    reset_on_answer: bytes = b""
    """The next answer that holds these bytes is not delivered: its connection is reset. Once."""
    resets: int = 0
    _links: set[_Link] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on the same port as before, or on a free one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and reset those that are open, as a server that dies."""
        if self._server is not None:
            self._server.close()
        self.cut()
        self._server = None

    def cut(self) -> int:
        """Reset all connections; returns how many there were."""
        links = list(self._links)
        for link in links:
            self._reset(link)
        return len(links)

    def half_open(self) -> int:
        """Connections now open never carry a byte again, and neither end hears of it; new ones work."""
        for link in self._links:
            link.swallowed = True
        return len(self._links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _abort(writer)
            return
        try:
            to_server, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _abort(writer)
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(link, reader, server_writer, answers=False))
                both.create_task(self._carry(link, to_server, writer, answers=True))
        except* OSError:
            pass
        finally:
            self._links.discard(link)
            for end in (writer, server_writer):
                end.close()

    async def _carry(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.swallow or link.swallowed:
                link.swallowed = True
                continue
            if answers and self._is_to_be_lost(chunk):
                self._reset(link)
                return
            writer.write(chunk)
            await writer.drain()
        if not link.swallowed:
            with contextlib.suppress(OSError):
                writer.write_eof()

    def _is_to_be_lost(self, answer: bytes) -> bool:
        if self.reset_on_answer and self.reset_on_answer in answer:
            self.reset_on_answer = b""
            return True
        if self.reset_after_bytes is not None:
            self.reset_after_bytes -= len(answer)
            if self.reset_after_bytes <= 0:
                self.reset_after_bytes = None
                return True
        return False

    def _reset(self, link: _Link) -> None:
        self.resets += 1
        self._links.discard(link)
        _abort(link.client)
        _abort(link.server)


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset instead of a goodbye."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport = writer.transport
    transport.abort()


@asynccontextmanager
async def proxied(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a port on loopback."""
    proxy = Proxy(target_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
