"""httpx's interface straight on aiohttp's client, for answers that are read as a whole.

Knows nothing of Nomad. httpx-aiohttp's own transport, made for answers of any size, hands each through five
generators: for one of a few hundred bytes that costs as much as the request.
"""

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport


class WholeAnswers(AiohttpTransport):
    """Answers come with their body. Failures are aiohttp's own."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request whose URL is escaped and whose body is at hand, and read its whole answer."""
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        limits = request.extensions["timeout"]
        async with self.client.request(
            request.method,
            str(request.url),
            headers=request.headers,
            data=request.content or None,
            allow_redirects=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(connect=limits["pool"], sock_connect=limits["connect"]),
            server_hostname=request.extensions.get("sni_hostname"),
        ) as answer:
            body = await answer.read()
        # Given with the body: httpx undoes its encoding at once.
        return httpx.Response(answer.status, headers=answer.raw_headers, content=body, request=request)
