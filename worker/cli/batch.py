"""`dispatch --batch`: a file of requests, one JSON object a line, sent as one and followed together.

Reads, sends and counts; what a request may hold is checked as a single one is.
"""

import asyncio
import base64
import json as json_text
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import typer

from worker.cli.console import Console
from worker.cli.monitor import EXIT_ERROR, EXIT_OK, exit_code
from worker.core.instants import parse_rfc3339
from worker.core.model import Request
from worker.core.reply import Reply
from worker.errors import RequestRejected

if TYPE_CHECKING:
    from worker.client import DispatchClient, Sent

SENT_AT_ONCE = 500


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the file. What is absent comes from the command's options."""

    job: str = ""
    payload: str = ""
    payload_base64: str = ""
    payload_file: str = ""
    meta: dict[str, str] = {}
    namespace: str | None = None
    region: str | None = None
    priority: int | None = None
    id_prefix: str = ""
    detach: bool | None = None
    reply_to: str = ""
    correlation_id: str = ""
    tenant: str = ""
    deadline: str = ""
    not_before: str = ""
    timeout_seconds: float | None = None
    idempotency_key: str = ""
    traceparent: str = ""


def read_requests(source: str, defaults: Request, token: str) -> list[Request]:
    """The requests of a file, `-` for standard input; empty lines are passed over.

    Args:
        source: the file.
        defaults: what a line does not say.
        token: each line without a key of its own gets `<token>:<line number>`, so that the file can be sent
            again after an interruption.

    Raises:
        ValueError: naming the line and its fault.
        OSError: the file, or one that a line names, cannot be read.
    """
    text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    requests = []
    for number, raw in enumerate(text.splitlines(), 1):
        if raw.strip():
            try:
                requests.append(_request(msgspec.json.decode(raw, type=Line), defaults, f"{token}:{number}"))
            except (msgspec.DecodeError, ValueError) as error:
                message = f"line {number}: {error}"
                raise ValueError(message) from error
    return requests


def _request(line: Line, defaults: Request, key: str) -> Request:
    given = [line.payload, line.payload_base64, line.payload_file]
    if sum(map(bool, given)) > 1:
        message = "give one of payload, payload_base64 and payload_file"
        raise ValueError(message)
    payload = line.payload.encode() or defaults.payload
    if line.payload_base64:
        payload = base64.b64decode(line.payload_base64, validate=True)
    elif line.payload_file:
        payload = Path(line.payload_file).read_bytes()
    return Request(
        job=line.job or defaults.job,
        payload=payload,
        meta={**defaults.meta, **line.meta},
        namespace=line.namespace or defaults.namespace,
        region=line.region or defaults.region,
        priority=line.priority or defaults.priority,
        id_prefix=line.id_prefix or defaults.id_prefix,
        detach=defaults.detach if line.detach is None else line.detach,
        reply_to=line.reply_to,
        correlation_id=line.correlation_id,
        tenant=line.tenant,
        deadline_ms=parse_rfc3339(line.deadline) if line.deadline else None,
        not_before_ms=parse_rfc3339(line.not_before) if line.not_before else None,
        timeout_seconds=line.timeout_seconds,
        idempotency_key=line.idempotency_key or key,
        traceparent=line.traceparent,
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """How a file of requests is sent and followed."""

    client: "DispatchClient"
    stream: str
    wait: bool
    json: bool

    async def run(self, requests: Sequence[Request]) -> int:
        """Send them all; with `wait` follow each to its end. Returns the exit code."""
        self._check(requests)
        with _progress("Sent", len(requests)) as bar:
            sent = await self._send(requests, bar)
        if not self.wait:
            repeated = sum(one.repeated for one in sent)
            again = f" ({repeated} of them had been sent before)" if repeated else ""
            typer.echo(f"{len(sent)} requests are in the stream {self.stream}{again}.", err=self.json)
            return EXIT_OK
        with _progress("Ended", len(sent)) as bar:
            finals = await self._follow(sent, bar)
        verdicts = Counter(reply.verdict.value for reply in finals if reply.verdict)
        told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        typer.echo(f"{len(finals)} requests ended: {told}.", err=self.json)
        return EXIT_ERROR if any(exit_code(reply) for reply in finals) else EXIT_OK

    def _check(self, requests: Sequence[Request]) -> None:
        """All of them before the first is sent."""
        for number, request in enumerate(requests, 1):
            try:
                self.client.check(request)
            except RequestRejected as error:
                Console.fail(f"Request {number} of the file: {error}. Nothing was sent.")

    async def _send(self, requests: Sequence[Request], bar: "Bar") -> "list[Sent]":
        sent: list[Sent] = []
        for start in range(0, len(requests), SENT_AT_ONCE):
            part = await self.client.send_many(requests[start : start + SENT_AT_ONCE], stream=self.stream)
            for one in part:
                if self.json and not self.wait:
                    told = {"stream": one.stream, "id": one.id, "repeated": one.repeated}
                    typer.echo(json_text.dumps(told))
                bar.advance()
            sent += part
        return sent

    async def _follow(self, sent: "Sequence[Sent]", bar: "Bar") -> list[Reply]:
        async def one(request: "Sent") -> Reply:
            reply = await self.client.wait(request)
            self._tell(reply)
            bar.advance()
            return reply

        return await asyncio.gather(*map(one, sent))

    def _tell(self, reply: Reply) -> None:
        if self.json:
            sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
            sys.stdout.buffer.flush()
        elif exit_code(reply):
            verdict = reply.verdict.value if reply.verdict else "ended"
            typer.echo(f"{reply.stream}:{reply.id}  {reply.job}  {verdict}: {reply.error_message}", err=True)


class Bar(Protocol):
    """How far it is."""

    def advance(self) -> None:
        """One more."""
        ...


class _NoBar:
    def advance(self) -> None:
        """Tell nobody."""


@contextmanager
def _progress(what: str, total: int) -> "Iterator[Bar]":
    """A bar on the terminal; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield _NoBar()
        return
    from rich.console import Console as RichConsole  # noqa: PLC0415 - heavy
    from rich.progress import MofNCompleteColumn, Progress  # noqa: PLC0415

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=RichConsole(stderr=True)) as progress:
        task = progress.add_task(what, total=total)

        class _Bar:
            def advance(self) -> None:
                progress.advance(task)

        yield _Bar()
