"""Requests whose answers are read as a whole, straight through aiohttp's client.

Knows nothing of Nomad. httpx says what an answer is; its requests are left out: httpx looks at every
character of a URL that was escaped a moment ago, and its transports hand an answer of a few hundred bytes
through five generators. Both together cost as much as aiohttp itself.
"""

from collections.abc import Callable, Mapping

import aiohttp
import httpx

URL_LIMIT_BYTES = 65_536
"""As httpx has it. Nomad's own limit, for URL and headers together, is about 1 MB."""


class WholeAnswers:
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
        # Totals are kept by the callers.
        self._timeout = aiohttp.ClientTimeout(connect=connect_seconds, sock_connect=connect_seconds)
        self._server_name = server_name

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
        if self._session is None:
            self._session = self._make()
        async with self._session.request(
            method,
            url,
            headers=headers,
            data=content,
            allow_redirects=False,
            auto_decompress=False,
            timeout=self._timeout,
            server_hostname=self._server_name,
        ) as answer:
            body = await answer.read()
        # Given with the body, its encoding is undone at once.
        return httpx.Response(answer.status, headers=answer.raw_headers, content=body)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
