"""Requests and answers in Nomad's manner: text/plain errors, index headers, blocking reads, lists by page.

Knows nothing of single endpoints.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web

from worker.dev.simulator.acl import Acl, Denied, Token, UnknownSignature
from worker.dev.simulator.cluster import Cluster
from worker.dev.simulator.durations import parse_duration
from worker.dev.simulator.filters import BadFilter, compile_filter

Row = TypeVar("Row")
SIGNATURE = "failed to parse signed token: go-jose/go-jose: compact JWS format must have three parts"
_LONGEST_WAIT_SECONDS = 600.0
_DEFAULT_WAIT_SECONDS = 300.0
_SILENCE = "9223372036854"
"""Nomad's word for "never heard of the leader", in milliseconds."""


class Fail(Exception):
    """An answer that is an error: its text goes out as text/plain."""

    def __init__(self, status: int, text: str, *, index: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.index = index


@dataclass(slots=True)
class Call:
    """One request, as the routes use it."""

    cluster: Cluster
    request: web.Request
    path: str
    """Decoded."""

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    @property
    def query(self) -> Mapping[str, str]:
        """The query; of repeated names the first value."""
        return self.request.query

    @property
    def namespace(self) -> str:
        """The namespace asked for."""
        return self.query.get("namespace") or "default"

    @property
    def stale(self) -> bool:
        """Whether any server may answer, with or without a leader."""
        return "stale" in self.query

    def allow(self, *methods: str) -> None:
        """Check the method.

        Raises:
            Fail: 405.
        """
        if self.method not in methods:
            raise Fail(405, "Invalid method")

    def secret(self) -> str:
        """Return the token sent, in either header."""
        bearer = self.request.headers.get("Authorization", "")
        return self.request.headers.get("X-Nomad-Token") or bearer.removeprefix("Bearer ").strip()

    def token(self) -> Token:
        """Return the request's token.

        Raises:
            Denied: unknown, expired, or no UUID.
        """
        try:
            return self.acl.resolve(self.secret(), self.cluster.now())
        except UnknownSignature:
            raise Denied from None

    @property
    def acl(self) -> Acl:
        """The permissions."""
        return self.cluster.acl

    def require(self, namespace: str, *any_of: str) -> None:
        """Check the region and a capability; without a capability a management token is needed.

        Raises:
            Fail: 500, another region.
            Denied: the token lacks the capability.
        """
        self.check_region()
        self.acl.require(self.token(), namespace, *any_of)

    def check_region(self) -> None:
        """Check that the region asked for is this one.

        Raises:
            Fail: 500.
        """
        if self.query.get("region", "global") not in {"", "global"}:
            raise Fail(500, "No path to region")

    def visible(self, capability: str) -> set[str] | None:
        """Return the namespaces of a list: those the token may see of `*`, else the one asked for.

        Raises:
            Denied: none.
        """
        self.check_region()
        token = self.token()
        if self.namespace == "*":
            return self.acl.readable(token, self.cluster.state.namespaces, capability)
        self.acl.require(token, self.namespace, capability)
        return {self.namespace}

    def json(self, value: Any, *, index: int | None = None) -> web.Response:
        """Answer a write, or a read without index headers."""
        headers = {} if index is None else {"X-Nomad-Index": str(index)}
        return web.Response(body=self._encode(value), content_type="application/json", headers=headers)

    def read(self, value: Any, index: int, **headers: str) -> web.Response:
        """Answer a read with its index headers."""
        shown = self.read_headers(index) | headers
        return web.Response(body=self._encode(value), content_type="application/json", headers=shown)

    def read_headers(self, index: int) -> dict[str, str]:
        """Return the headers that reads carry."""
        leaderless = self.cluster.faults.leaderless_seconds is not None
        return {
            "X-Nomad-Index": str(index),
            "X-Nomad-Knownleader": "false" if leaderless else "true",
            "X-Nomad-Lastcontact": _SILENCE if leaderless else "0",
        }

    def _encode(self, value: Any) -> bytes:
        encoded = msgspec.json.encode(value)
        if "pretty" in self.query:
            return msgspec.json.format(encoded, indent=4) + b"\n"
        return encoded

    async def blocking(self, index_now: Callable[[], int]) -> None:
        """Wait as `?index=N&wait=T` asks: until the index is beyond N, at most T and a sixteenth more.

        Raises:
            Fail: 400, index or wait cannot be read.
        """
        after, seconds = self._wait_options()
        if after < 1:
            return
        deadline = self.cluster.now() + int(seconds * 1e9)
        while index_now() <= after:
            left = (deadline - self.cluster.now()) / 1e9
            if left <= 0 or self.request.transport is None:
                return
            await self.cluster.changes.wait(left)

    def _wait_options(self) -> tuple[int, float]:
        try:
            after = int(self.query.get("index") or "0")
        except ValueError:
            after = -1
        if after < 0:
            raise Fail(400, "Invalid index")
        try:
            seconds = parse_duration(self.query.get("wait") or "0") / 1e9
        except ValueError:
            raise Fail(400, "Invalid wait time") from None
        seconds = min(seconds or _DEFAULT_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
        jitter = random.uniform(0, seconds / 16)  # noqa: S311 - spreads answers, protects nothing
        return after, seconds + jitter

    def page(
        self,
        rows: Iterable[Row],
        fields: Callable[[Row], Mapping[str, Any]],
        key: Callable[[Row], tuple[Any, str]],
    ) -> tuple[list[Row], str]:
        """Return one page of a list, and the token of the next page ("" on the last one).

        Args:
            rows: all rows, in order.
            fields: what a filter sees of a row.
            key: a row's place in the order, shown as its page token.

        Raises:
            Fail: 400, a bad filter or page size.
        """
        try:
            size = int(self.query.get("per_page") or "0")
        except ValueError:
            raise Fail(400, "Expect a number for `per_page` query string parameter") from None
        start = self.query.get("next_token", "")
        first, _, second = start.partition(".")
        found: list[Row] = []
        try:
            test = compile_filter(self.query["filter"]) if self.query.get("filter") else None
            for row in rows:
                if start:
                    here = key(row)
                    if here < (type(here[0])(first), second):
                        continue
                if test is not None and not test(fields(row)):
                    continue
                if size and len(found) == size:
                    return found, "{}.{}".format(*key(row))
                found.append(row)
        except BadFilter as error:
            raise Fail(400, str(error)) from None
        return found, ""


def decoded_path(request: web.Request) -> str:
    """Return the path with escapes resolved, as Nomad routes it."""
    return unquote(request.rel_url.raw_path)
