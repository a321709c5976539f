"""Requests straight through aiohttp's client: answers read as a whole, and answers that go on.

Knows nothing of Nomad. httpx says what a whole answer is; its requests are left out: httpx looks at every
character of a URL that was escaped a moment ago, and its transports hand an answer of a few hundred bytes
through five generators. Both together cost as much as aiohttp itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import httpx

URL_LIMIT_BYTES = 65_536
"""As httpx has it. Nomad's own limit, for URL and headers together, is about 1 MB."""

_ENCODING = b"content-encoding"


class Pool:
    """One pool of connections.

    Args:
        session: makes the pool; called at the first request, in the loop that it will belong to.
        connect_seconds: to get a connection: a free one, or a new one with its TLS handshake.
        server_name: the name the server's certificate must carry, where it is not the URL's host.
    """

    def __init__(
        self, session: Callable[[], aiohttp.ClientSession], *, connect_seconds: float, server_name: str | None
    ) -> None:
        self._make = session
        self._session: aiohttp.ClientSession | None = None
        self._always: dict[str, Any] = {
            "allow_redirects": False,
            # Totals are kept by the callers.
            "timeout": aiohttp.ClientTimeout(connect=connect_seconds, sock_connect=connect_seconds),
            "server_hostname": server_name,
        }

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | None = None
    ) -> httpx.Response:
        """Send one request and read its whole answer.

        Args:
            method: the HTTP method.
            url: escaped.
            headers: all of them, save those that the connection and the body need.
            content: the body.

        Raises:
            httpx.InvalidURL: the URL is too long.
            aiohttp.ClientError, OSError: no (whole) answer.
            httpx.DecodingError: the answer's encoding is broken.
        """
        if len(url) > URL_LIMIT_BYTES:
            message = "URL too long"
            raise httpx.InvalidURL(message)
        async with self._ready().request(
            method, url, headers=headers, data=content, auto_decompress=False, **self._always
        ) as answer:
            body = await answer.read()
        if "Content-Encoding" not in answer.headers:
            return _Plain(answer, body)
        # Given with the body, its encoding is undone at once.
        return httpx.Response(answer.status, headers=answer.raw_headers, content=body)

    async def open(self, url: str, *, headers: Mapping[str, str]) -> "Stream":
        """Send a GET request; returns with the answer's headers. The caller closes the answer.

        Args:
            url: escaped.
            headers: as for `send`.

        Raises:
            aiohttp.ClientError, OSError: no answer.
        """
        request = self._ready().request("GET", url, headers=headers, auto_decompress=True, **self._always)
        return Stream(await request)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _ready(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._make()
        return self._session


class Stream:
    """An answer that goes on. Its encoding is undone as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.status = answer.status
        self.is_success = httpx.codes.is_success(answer.status)

    async def read(self) -> bytes:
        """What came since the last call, at least one byte; empty: it ended.

        Raises:
            aiohttp.ClientError, OSError: it broke, or was closed.
        """
        return await self._answer.content.readany()

    async def whole(self) -> httpx.Response:
        """The answer, read to its end.

        Raises:
            aiohttp.ClientError, OSError: no whole answer.
        """
        body = await self._answer.read()
        headers = [header for header in self._answer.raw_headers if header[0].lower() != _ENCODING]
        return httpx.Response(self._answer.status, headers=headers, content=body)

    def close(self) -> None:
        """Close its connection. Whoever waits for more is told that it broke."""
        self._answer.close()


class _Plain(httpx.Response):
    """An answer whose body is not encoded: httpx would hand it through four generators to say the same."""

    def __init__(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        super().__init__(answer.status, headers=answer.raw_headers, stream=httpx.ByteStream(body))
        self._plain = body

    @property
    def content(self) -> bytes:
        """The body."""
        return self._plain
