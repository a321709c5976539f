"""Reaches one Nomad agent: address, TLS, token, timeouts and connection pools.

Knows nothing of endpoints or of what answers mean.

Requests and event streams go through aiohttp, which costs a sixth of the CPU of httpx's own transport;
answers are httpx's. Streams have connections apart from the pool, so that they never hold up a request.
"""

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

import aiohttp
import httpx

from worker import __version__
from worker.adapters.nomad.token import TokenSource
from worker.adapters.nomad.transport import Pool, Stream
from worker.core.model import Place
from worker.core.refusal import bounded
from worker.errors import NomadTimeout, NomadUnavailable, SettingsInvalid

TRANSPORT_FAILURES = (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError, OSError)
"""What the transport raises when no (whole) answer came; `unreachable` names it."""

_NEVER_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
)
_NO_ANSWER = (aiohttp.SocketTimeoutError, TimeoutError)
_KEEPALIVE_SECONDS = 30.0
_USER_AGENT = f"nomad-dispatch-worker/{__version__}"
_HEADERS_KEPT = 8
"""Kinds of request times tokens; a token that changes leaves its headers behind."""

Query = Sequence[tuple[str, str | None]]
"""Names and unescaped values of a URL's query; a value that is None or empty is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NomadOptions:
    """How to reach Nomad, in the terms of Nomad's own CLI. Times are seconds."""

    address: str = "http://127.0.0.1:4646"
    """`http://host:port`, `https://host:port` (a path prefix may follow), or `unix:///path/api.sock`."""
    region: str = ""
    """Asked where a call's place names none; empty: the region of the agent."""
    namespace: str = ""
    """Asked where a call's place names none; empty: `default`."""
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    """Wins over `token`."""
    on_secret: Callable[[str], None] = field(default=lambda _: None, repr=False)
    """Told of every token read from the file, so that logs can mask it."""
    ca_cert: Path | None = None
    ca_path: Path | None = None
    """A folder of PEM files, not read where `ca_cert` is given."""
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_server_name: str = ""
    """The name the agent's certificate must carry, where it is not the address's host."""
    skip_verify: bool = False
    connect_timeout_seconds: float = 2.0
    """To get a connection: a free one of the pool, or a new one with its TLS handshake."""
    dispatch_timeout_seconds: float = 5.0
    """For one dispatch as a whole. A server without a leader takes about 5 s to say so."""
    read_timeout_seconds: float = 10.0
    """For any other request as a whole."""
    probe_timeout_seconds: float = 3.0
    """For the requests of health checks, and for log tails."""
    pool_size: int = 20
    """Connections for requests. Agents accept 100 per client address by default, streams not counted."""
    first_line_seconds: float = 5.0
    """For an event stream's first line, connecting included: a refused stream has none."""
    silence_seconds: float = 65.0
    """An event stream without a line for this long is lost: two missed beats of 30 s."""
    line_limit_bytes: int = 16 * 1024 * 1024
    """A longer line of an event stream is skipped and reported as incomplete."""


class NomadConnection:
    """The connections to one agent; close it, or use it as a context manager.

    Raises:
        SettingsInvalid: the address, a TLS file or the token file is not usable.
    """

    def __init__(self, options: NomadOptions) -> None:
        self.options = options
        self.token = TokenSource(options.token, options.token_file, on_secret=options.on_secret)
        self._base, self._socket = _parse(options.address)
        self._tls = tls_context(options) if self._base.startswith("https://") else None
        self._server_name = options.tls_server_name if self._tls and options.tls_server_name else None
        self._headers: dict[tuple[str, bool, str], Mapping[str, str]] = {}
        pool = partial(Pool, connect_seconds=options.connect_timeout_seconds, server_name=self._server_name)
        self._requests = pool(partial(self._session, limit=options.pool_size, reuse=True))
        self._streams = pool(partial(self._session, limit=0, reuse=False))

    def __repr__(self) -> str:
        return f"NomadConnection({self.options.address})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, streams included."""
        await self._streams.aclose()
        await self._requests.aclose()

    def url(self, path: str, query: Query, place: Place | None = None) -> str:
        """The whole URL.

        Args:
            path: escaped, begins with `/v1/`.
            query: names and unescaped values; None and empty ones are left out.
            place: region and namespace; None: a question about the agent itself.
        """
        asked = [*query]
        if place is not None:
            asked.append(("region", place.region or self.options.region))
            asked.append(("namespace", place.namespace or self.options.namespace))
        pairs = [f"{name}={quote(value, safe='')}" for name, value in asked if value]
        return f"{self._base}{path}?{'&'.join(pairs)}" if pairs else f"{self._base}{path}"

    async def send(self, method: str, url: str, content: bytes | None = None) -> httpx.Response:
        """Send a request with the token, and read its whole answer.

        Raises:
            httpx.InvalidURL: the URL is too long.
            TRANSPORT_FAILURES: no whole answer.
        """
        # A request with a body is a dispatch, whose answer is a few hundred bytes. Nomad would compress those
        # too, with a compressor set up for each, and accept a third fewer dispatches over it.
        encoding = "gzip" if content is None else "identity"
        headers = self._headers_for(encoding, has_body=content is not None)
        return await self._requests.send(method, url, headers=headers, content=content)

    async def open(self, url: str) -> Stream:
        """Send a request for a stream with the token; returns with the headers. The caller closes the answer.

        Raises:
            TRANSPORT_FAILURES: no answer.
        """
        return await self._streams.open(url, headers=self._headers_for("identity", has_body=False))

    def unreachable(self, error: BaseException, asked: str) -> NomadUnavailable:
        """The named error for a failure of the transport.

        Args:
            error: one of TRANSPORT_FAILURES or TimeoutError.
            asked: what was asked, for the message.

        Returns:
            NomadTimeout when no answer came in time; else NomadUnavailable. `maybe_applied` is False only
            when no connection was established, hence nothing sent.
        """
        why = bounded(self.token.mask(str(error)) or type(error).__name__)
        if isinstance(error, _NEVER_SENT):
            return NomadUnavailable(f"{asked}: no connection: {why}", maybe_applied=False)
        if isinstance(error, _NO_ANSWER):
            return NomadTimeout(f"{asked}: no answer in time")
        return NomadUnavailable(f"{asked}: connection broke: {why}")

    def _headers_for(self, encoding: str, *, has_body: bool) -> Mapping[str, str]:
        """Made once per token."""
        kind = encoding, has_body, self.token.current()
        headers = self._headers.get(kind)
        if headers is None:
            if len(self._headers) >= _HEADERS_KEPT:
                self._headers.clear()
            made = {"Accept": "*/*", "Accept-Encoding": encoding, "User-Agent": _USER_AGENT}
            if has_body:
                made["Content-Type"] = "application/json"
            if token := kind[2]:
                made["X-Nomad-Token"] = token
            headers = self._headers[kind] = made
        return headers

    def _session(self, *, limit: int, reuse: bool) -> aiohttp.ClientSession:
        keepalive = _KEEPALIVE_SECONDS if reuse else None
        connector: aiohttp.BaseConnector
        if self._socket:
            connector = aiohttp.UnixConnector(
                self._socket, limit=limit, force_close=not reuse, keepalive_timeout=keepalive
            )
        else:
            connector = aiohttp.TCPConnector(
                limit=limit,
                force_close=not reuse,
                keepalive_timeout=keepalive,
                ssl=self._tls if self._tls is not None else True,
            )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )


def tls_context(options: NomadOptions) -> ssl.SSLContext:
    """The TLS settings, as Nomad's CLI understands them.

    Raises:
        SettingsInvalid: a file cannot be read or used; the message names its setting.
    """
    context = ssl.create_default_context() if not (options.ca_cert or options.ca_path) else _bare_context()
    # Python 3.13 began to insist on certificate extensions that private authorities often leave out.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if options.ca_cert:
        _trust(context, options.ca_cert, "NOMAD_CACERT")
    elif options.ca_path:
        files = sorted(file for file in options.ca_path.rglob("*") if file.is_file())
        for file in files:
            _trust(context, file, "NOMAD_CAPATH")
        if not files:
            message = f"NOMAD_CAPATH {options.ca_path}: holds no file"
            raise SettingsInvalid(message)
    if bool(options.client_cert) != bool(options.client_key):
        message = "NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY need each other"
        raise SettingsInvalid(message)
    if options.client_cert and options.client_key:
        try:
            # An encrypted key is an error, not a question on the terminal.
            context.load_cert_chain(options.client_cert, options.client_key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            message = (
                f"NOMAD_CLIENT_CERT {options.client_cert}, NOMAD_CLIENT_KEY {options.client_key}: {error}"
            )
            raise SettingsInvalid(message) from None
    if options.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _bare_context() -> ssl.SSLContext:
    """Verifies, and trusts nobody yet: a configured authority replaces the system's."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _trust(context: ssl.SSLContext, file: Path, setting: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except (OSError, ssl.SSLError) as error:
        message = f"{setting} {file}: {error}"
        raise SettingsInvalid(message) from None


def _parse(address: str) -> tuple[str, str]:
    """Base URL and, for a Unix socket, its path."""
    try:
        parts = urlsplit(address.strip())
        port = parts.port
    except ValueError as error:
        message = f"NOMAD_ADDR: {error}"
        raise SettingsInvalid(message) from None
    if parts.username is not None or parts.password is not None:
        message = "NOMAD_ADDR must not hold a user or password: the token goes into NOMAD_TOKEN_FILE"
        raise SettingsInvalid(message)
    if parts.query or parts.fragment:
        message = "NOMAD_ADDR must not hold a query or fragment"
        raise SettingsInvalid(message)
    if parts.scheme == "unix" and not parts.netloc and len(parts.path) > 1:
        return "http://localhost", parts.path
    if parts.scheme in ("http", "https") and parts.hostname:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}", ""
    message = "NOMAD_ADDR must be http://host:port, https://host:port or unix:///path"
    raise SettingsInvalid(message)
