"""Sends one request and turns whatever happens into an answer or a named error.

Knows nothing of endpoints. One try each: repeating is for the flow to decide.
"""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

import httpx
import msgspec

from worker.adapters.nomad.connection import TRANSPORT_FAILURES, NomadConnection, Query
from worker.core.model import Place
from worker.core.refusal import bounded, refusal
from worker.errors import NomadDenied, NomadRefused, NomadUnavailable, WorkerError

Answer = TypeVar("Answer")

READS_AT_ONCE = 3
"""Connections for everything but dispatches: a thousand jobs that end at once cost no more of Nomad's 100."""


class Operation(StrEnum):
    """What is asked of Nomad: a closed set, used as a metric label."""

    DISPATCH = "dispatch"
    JOB = "job"
    FIND_BY_TOKEN = "find_by_token"  # noqa: S105 - the name of an operation
    LIVE_CHILDREN = "live_children"
    EVALUATIONS = "evaluations"
    ALLOCATIONS = "allocations"
    STOP = "stop"
    PURGE = "purge"
    PARENTS = "parents"
    COUNT = "count"
    LEADER = "leader"
    TOKEN_SELF = "token_self"  # noqa: S105 - the name of an operation
    LOGS = "logs"
    AGENT_HEALTH = "agent_health"
    EVENTS = "events"


_UNCOUNTED = frozenset({Operation.DISPATCH, Operation.LEADER, Operation.AGENT_HEALTH})
"""Dispatches have slots of their own, and a probe has to tell of Nomad even when reads are slow."""


_ABOUT_CHILDREN = frozenset(
    {
        Operation.JOB,
        Operation.FIND_BY_TOKEN,
        Operation.LIVE_CHILDREN,
        Operation.EVALUATIONS,
        Operation.ALLOCATIONS,
        Operation.STOP,
        Operation.PURGE,
        Operation.EVENTS,
    }
)
"""What is asked about jobs that there are. A refusal tells of the way there, and nothing about the jobs:
servers that have lost a federated region answer that there is no path to it, a proxy what it likes."""


OnRequest = Callable[[str, str, float], None]
"""Called after each request: an `Operation`, the HTTP status or `error`, and the seconds it took. For an
event stream: the seconds to its headers."""


def unobserved(operation: str, code: str, seconds: float) -> None:
    """The `OnRequest` of those who do not measure."""


class Calls:
    """One request at a time per call, each with a limit on its whole duration."""

    def __init__(self, connection: NomadConnection, on_request: OnRequest = unobserved) -> None:
        self._connection = connection
        self._on_request = on_request
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self.reached: set[str] = set()
        """Regions that have answered: they exist, whatever is said of the way there later."""

    async def call(
        self,
        operation: Operation,
        method: str,
        path: str,
        query: Query = (),
        *,
        place: Place | None = None,
        content: bytes | None = None,
        timeout_seconds: float,
    ) -> httpx.Response:
        """Send one request and read its whole answer, whatever its status.

        Args:
            operation: for metrics and messages.
            method: the HTTP method.
            path: escaped.
            query: names and unescaped values.
            place: None: a question about the agent itself.
            content: the body, JSON.
            timeout_seconds: for everything, from the wait for a connection to the last byte. A request that
                has to wait for its turn waits for others with such a limit.

        Raises:
            NomadUnavailable: (or NomadTimeout) no whole answer.
            NomadRefused: the request does not fit into a URL.
        """
        url = self._connection.url(path, query, place)
        if operation in _UNCOUNTED:
            response = await self._send(operation, method, url, content, timeout_seconds)
        else:
            async with self._turns:
                response = await self._send(operation, method, url, content, timeout_seconds)
        if place is not None and response.is_success:
            self.reached.add(place.region)
        return response

    async def _send(
        self, operation: Operation, method: str, url: str, content: bytes | None, timeout_seconds: float
    ) -> httpx.Response:
        code, started = "error", time.perf_counter()
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await self._connection.send(method, url, content)
            code = str(response.status_code)
        except httpx.InvalidURL as error:
            message = f"{operation}: {bounded(str(error))}"
            raise NomadRefused(message) from None
        except TRANSPORT_FAILURES as error:
            raise self._connection.unreachable(error, operation) from error
        finally:
            self._on_request(operation, code, time.perf_counter() - started)
        return response

    def refused(self, response: httpx.Response, operation: Operation) -> WorkerError:
        """The named error for an answer that is no success.

        Only of dispatches and of people's questions it is a NomadRefused; what the worker watches jobs by may
        always succeed later.
        """
        error = refusal(
            response.status_code,
            self._connection.token.mask(response.text),
            retry_after_seconds=_retry_after_seconds(response),
        )
        if isinstance(error, NomadDenied):
            self._connection.token.refused()
        if isinstance(error, NomadRefused) and operation in _ABOUT_CHILDREN:
            return NomadUnavailable(f"{operation}: {error}")
        return error

    def read(
        self, response: httpx.Response, decode: Callable[[bytes], Answer], operation: Operation
    ) -> Answer:
        """The decoded answer of a success.

        Raises:
            WorkerError: as `refused`, when the status is no success.
            NomadUnavailable: a success that is not Nomad's, e.g. a proxy's page.
        """
        if not response.is_success:
            raise self.refused(response, operation)
        try:
            return decode(response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f"{operation}: an answer that is not Nomad's: {bounded(str(error))}"
            raise NomadUnavailable(message) from None


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """The wait asked for; a date instead of seconds is left aside, for it needs equal clocks."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None
