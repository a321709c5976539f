"""From a request to an exit code: what `dispatch` and `wait` do between their options and their end.

The words are in `monitor`; settings come from the environment alone.
"""

import asyncio
import webbrowser
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from worker.adapters.redis.connection import mask
from worker.cli.console import Console
from worker.cli.goflags import FALSE, TRUE
from worker.cli.logs import LogFollower
from worker.cli.monitor import (
    EXIT_ERROR,
    EXIT_OK,
    EXIT_UNPLACED,
    Monitor,
    Placement,
    dispatched_lines,
    end_lines,
    exit_code,
    failure_text,
    repeated_line,
    ui_url,
    was_placed,
)
from worker.client import DispatchClient, RedisClaims, RedisOptions, Reply, Sent
from worker.core.instants import format_rfc3339
from worker.core.model import Record

if TYPE_CHECKING:
    from worker.adapters.nomad.client import NomadClient

SHOW_HINTS = "NOMAD_CLI_SHOW_HINTS"
PATIENT_SECONDS = 5.0
"""After this long without any reply the user is told that no worker has taken the request."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Settings of the producer's commands. The names are the worker's own and Nomad's."""

    redis: RedisOptions
    prefix: str
    streams: tuple[str, ...]
    """Short names of the request streams."""
    group: str
    nomad_address: str
    namespace: str
    region: str
    hints: bool
    own: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables given as options, which win over the environment."""

    @classmethod
    def read(cls, variables: Mapping[str, str], own: Mapping[str, str] | None = None) -> "Environment":
        """Take what is set; an empty variable counts as unset. `own` wins."""
        variables = {**variables, **(own or {})}

        def path(name: str) -> Path | None:
            return Path(text) if (text := variables.get(name)) else None

        streams = variables.get("WORKER_STREAMS") or "requests"
        return cls(
            redis=RedisOptions(
                variables.get("REDIS_URL") or "redis://127.0.0.1:6379/0",
                username=variables.get("REDIS_USERNAME", ""),
                password_file=path("REDIS_PASSWORD_FILE"),
                ca_file=path("REDIS_CA_FILE"),
                cert_file=path("REDIS_CERT_FILE"),
                key_file=path("REDIS_KEY_FILE"),
                client_name="dispatch-worker-cli",
            ),
            prefix=variables.get("WORKER_PREFIX") or "{dispatch}",
            streams=tuple(part.partition(":")[0].strip() for part in streams.split(",")),
            group=variables.get("WORKER_GROUP") or "workers",
            nomad_address=variables.get("NOMAD_ADDR", ""),
            namespace=variables.get("NOMAD_NAMESPACE", ""),
            region=variables.get("NOMAD_REGION", ""),
            hints=_hints(variables.get(SHOW_HINTS, "")),
            own=own or {},
        )

    @property
    def stream(self) -> str:
        """Where requests go that name no stream."""
        return self.streams[0]

    @property
    def redis_address(self) -> str:
        """Where Redis is, without a password."""
        return mask(self.redis.url)

    def nomad(self) -> "NomadClient":
        """A client of Nomad, with the worker's settings; for what Redis cannot tell."""
        from worker.adapters.nomad.client import NomadClient  # noqa: PLC0415 - heavy
        from worker.runtime.wiring import nomad_options  # noqa: PLC0415
        from worker.settings import load  # noqa: PLC0415

        # Each request names its own place; `*` would be none for a worker.
        return NomadClient(nomad_options(load({**self.own, "NOMAD_NAMESPACE": "", "NOMAD_REGION": ""})))

    def client(self, claims: RedisClaims | None = None) -> DispatchClient:
        """A client of this Redis."""
        return DispatchClient(self.redis, prefix=self.prefix, claims=claims)


def _hints(text: str) -> bool:
    if text and text not in TRUE | FALSE:
        fault = f'strconv.ParseBool: parsing "{text}": invalid syntax'
        Console.notice(f'Invalid value "{text}" for {SHOW_HINTS}: {fault}')
    return text not in FALSE


async def replies_to(client: DispatchClient, sent: Sent) -> AsyncGenerator[Reply, None]:
    """A message's replies until the final one; the user is told when none comes for a while."""
    notice = f"Waiting for a worker to take {sent.key}. Is there any?  dispatch-worker status"
    reminder = asyncio.get_running_loop().call_later(PATIENT_SECONDS, Console.notice, notice)
    try:
        async with aclosing(client.events(sent)) as replies:
            async for reply in replies:
                reminder.cancel()
                yield reply
    finally:
        reminder.cancel()


@asynccontextmanager
async def sending(environment: Environment) -> AsyncGenerator[None, None]:
    """While a request is sent: the user is told when Redis takes its time."""
    notice = f"No answer from Redis at {environment.redis_address} (REDIS_URL) yet; trying on."
    reminder = asyncio.get_running_loop().call_later(PATIENT_SECONDS, Console.notice, notice)
    try:
        yield
    finally:
        reminder.cancel()


async def cancel_and_follow(environment: Environment, console: Console, sent: Sent) -> int:
    """Cancel a request and wait for its end. Returns the exit code of that end."""
    async with environment.client() as client:
        await client.cancel(sent.stream, sent.id)
        console.notice(f"Cancellation of {sent.key} ordered.")
        final = await client.wait(await client.find(sent.stream, sent.id))
        console.reply(final)
        console.lines(end_lines(final))
        return exit_code(final)


@dataclass(frozen=True, slots=True)
class Options:
    """How far a dispatch is followed, and what is shown of it."""

    detach: bool
    wait: bool
    verbose: bool
    open_ui: bool
    token: str = ""
    """The idempotency token given; empty: none."""
    follow_logs: bool = False


class DispatchSession:
    """From the request in the stream to the exit code."""

    def __init__(
        self, environment: Environment, options: Options, console: Console, client: DispatchClient, job: str
    ) -> None:
        self._environment = environment
        self._options = options
        self._console = console
        self._client = client
        self._job = job
        self._monitor = Monitor(verbose=options.verbose)

    async def follow(self, sent: Sent) -> int:
        """Print what comes until the exit code is certain."""
        options = self._options
        if sent.repeated and not options.wait:
            # As Nomad answers a token's repeat: the job of the first request, and no monitoring.
            record = await self._client.recall(sent.stream, sent.id)
            if record is not None and record.job_id:
                self._console.reply(_repeat(record))
                self._console.lines([repeated_line(record.job_id, options.token)])
                return EXIT_OK
        async with AsyncExitStack() as opened:
            logs = None
            if options.follow_logs:
                logs = await opened.enter_async_context(LogFollower(self._environment.nomad(), self._console))
            replies = await opened.enter_async_context(aclosing(replies_to(self._client, sent)))
            async for reply in replies:
                self._console.reply(reply)
                if logs is not None:
                    await logs.hear(reply)
                code = self._after(reply, repeated=sent.repeated)
                if code is not None:
                    return code
        return EXIT_ERROR

    def _after(self, reply: Reply, *, repeated: bool) -> int | None:
        """The exit code, once this reply settles it."""
        options = self._options
        if reply.final and not reply.dispatched_job_id and not was_placed(reply):
            self._console.fail(failure_text(reply, self._job), exit_code(reply))
        if not options.wait and (options.detach or repeated):
            if not reply.dispatched_job_id:
                return None
            if repeated:
                self._console.lines([repeated_line(reply.dispatched_job_id, options.token)])
            else:
                self._console.lines(dispatched_lines(reply, verbose=options.verbose))
            return EXIT_OK
        if head := self._monitor.head(reply):
            self._console.lines(head)
            self._show_url(reply)
        self._console.lines(self._monitor.lines(reply))
        if options.wait:
            if not reply.final:
                return None
            self._console.lines(["", *end_lines(reply)])
            return exit_code(reply)
        if self._monitor.placement is Placement.FAILED:
            return EXIT_UNPLACED
        if self._monitor.placement is Placement.PLACED:
            return EXIT_OK
        if reply.final:
            self._console.lines(end_lines(reply))
            return exit_code(reply)
        return None

    def _show_url(self, reply: Reply) -> None:
        url = ui_url(reply, self._environment.nomad_address)
        if url and self._options.open_ui and not webbrowser.open(url):
            self._console.notice("Failed to open browser: none was found")
        if url and self._environment.hints:
            self._console.notice(f"\n\n==> View this job in the Web UI: {url}\n")


def _repeat(record: Record) -> Reply:
    """What the first request's `dispatched` reply said, as far as the ledger still tells."""
    return Reply(
        type="dispatched",
        id=record.key.id,
        stream=record.key.stream,
        seq=0,
        final=False,
        job=record.routing.job,
        namespace=record.routing.namespace,
        region=record.routing.region,
        dispatched_job_id=record.job_id,
        eval_id=record.eval_id,
        correlation_id=record.routing.correlation_id,
        at=format_rfc3339(record.dispatched_at_ms) if record.dispatched_at_ms else "",
        attempt=record.attempt,
    )
