"""`dispatch-worker dispatch`: as `nomad job dispatch`, through the queue.

Options, output lines and exit codes are those of Nomad's command; the words are in `monitor`.
"""

import os
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from worker.cli import general
from worker.cli.command import NomadCommand
from worker.cli.console import Console
from worker.cli.lookup import JobNotFound, find_job, job_names
from worker.cli.monitor import payload_too_large_text
from worker.core.model import PAYLOAD_LIMIT_BYTES, Request

if TYPE_CHECKING:
    from worker.cli.batch import Batch
    from worker.cli.session import Environment
    from worker.client import DispatchClient

_USAGE = (
    "This command takes one or two argument: <parameterized job> [input source]\n"
    "For additional help try 'dispatch-worker dispatch -help'"
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "dispatch",
        cls=NomadCommand,
        context_settings={
            "help_option_names": [],  # NomadCommand has its own
        },
    )(dispatch)


def _option(name: str, text: str, panel: str, **more: Any) -> Any:
    return typer.Option(f"-{name}", f"--{name}", help=text, rich_help_panel=panel, **more)


def _nomads(name: str, text: str, **more: Any) -> Any:
    return _option(name, text, "Dispatch Options", **more)


def _queues(name: str, text: str, *, minimum: float | None = None, **more: Any) -> Any:
    return _option(name, text, "Queue Options, beyond Nomad's", min=minimum, **more)


def dispatch(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB [INPUT]",
            help="Parameterized job, and a payload file or - for stdin.",
            autocompletion=job_names,
        ),
    ] = None,
    *,
    address: general.Address = "",
    region: general.Region = "",
    namespace: general.Namespace = "",
    no_color: general.NoColor = False,
    force_color: general.ForceColor = False,
    ca_cert: general.CaCert = "",
    ca_path: general.CaPath = "",
    client_cert: general.ClientCert = "",
    client_key: general.ClientKey = "",
    tls_server_name: general.TlsServerName = "",
    tls_skip_verify: general.TlsSkipVerify = False,
    token: general.Token = "",
    meta: Annotated[
        list[str] | None, _nomads("meta", "Metadata the job allows; repeatable.", metavar="KEY=VALUE")
    ] = None,
    detach: Annotated[
        bool, _nomads("detach", "Return when the job is dispatched; how it ends is not reported.")
    ] = False,
    idempotency_token: Annotated[
        str, _nomads("idempotency-token", "One dispatch per token, namespace and job.", metavar="TOKEN")
    ] = "",
    id_prefix_template: Annotated[
        str, _nomads("id-prefix-template", "Put into the job's ID.", metavar="PREFIX")
    ] = "",
    priority: Annotated[int, _nomads("priority", "Overrides the job's own.", metavar="NUMBER")] = 0,
    verbose: Annotated[bool, _nomads("verbose", "Show whole IDs.")] = False,
    wait: Annotated[bool, _nomads("wait", "Wait for the job's end; exit with its task's code.")] = False,
    ui: Annotated[bool, _nomads("ui", "Open the job in the browser.")] = False,
    stream: Annotated[
        str, _queues("stream", "Request stream. Default: the first of WORKER_STREAMS.", metavar="NAME")
    ] = "",
    timeout: Annotated[
        float | None, _queues("timeout", "Give up waiting after this.", metavar="SECONDS", minimum=0)
    ] = None,
    batch: Annotated[
        str,
        _queues(
            "batch", "Many requests: one JSON object a line; - for stdin. JOB is optional.", metavar="FILE"
        ),
    ] = "",
    claim_check: Annotated[
        bool, _queues("claim-check", "Keep a payload beyond 16 KiB in Redis; the job fetches it by its meta.")
    ] = False,
    follow_logs: Annotated[
        bool, _queues("follow-logs", "Show what the tasks write; asks Nomad. Implies -wait.")
    ] = False,
    json: Annotated[bool, _queues("json", "One JSON line per reply.")] = False,
) -> None:
    """Dispatch a parameterized job through the queue, as `nomad job dispatch` does directly.

    Exit codes: 0 placed or detached, 1 error, 2 not placeable now; with -wait the task's own.
    """
    from worker.cli.batch import Batch  # noqa: PLC0415 - heavy
    from worker.cli.running import Run  # noqa: PLC0415
    from worker.cli.session import (  # noqa: PLC0415
        DispatchSession,
        Environment,
        Options,
        cancel_and_follow,
        sending,
    )
    from worker.client import RedisClaims  # noqa: PLC0415

    console = Console(json_lines=json)
    general.choose_colours(os.environ, no_color=no_color, force_color=force_color)
    general_options = general.General(
        *(address, region, namespace, token, ca_cert, ca_path, client_cert, client_key, tls_server_name),
        tls_skip_verify=tls_skip_verify,
    )
    environment = Environment.read(os.environ, general_options.variables())
    job, source = _positions(console, arguments or [], optional=bool(batch))
    wait = wait or follow_logs
    if follow_logs and not environment.nomad_address:
        console.fail("--follow-logs asks Nomad: set NOMAD_ADDR, and a token with read-job and read-logs")
    if wait and detach:
        console.fail("-wait and -detach exclude each other")
    request = Request(
        job=job,
        payload=_payload(console, source, claim_check=claim_check),
        meta=_meta(console, meta or []),
        namespace=environment.namespace or None,
        region=environment.region or None,
        priority=priority or None,  # 0 is how Nomad's command says "not given"
        id_prefix=id_prefix_template,
        detach=detach,
        idempotency_key=idempotency_token,
    )
    claims = RedisClaims() if claim_check else None
    if batch:
        target = partial(Batch, stream=stream or environment.stream, wait=wait, json=json)
        _batch(console, environment, partial(environment.client, claims), target, request, batch, timeout)
    options = Options(detach, wait, verbose, ui, idempotency_token, follow_logs)
    run = Run(
        environment.redis_address,
        timeout,
        cancel=partial(cancel_and_follow, environment, console) if wait else None,
    )

    async def main() -> int:
        found = await _find(console, environment, request)
        async with environment.client(claims) as client:
            async with sending(environment):
                run.sent = await client.send(found, stream=stream or environment.stream)
            session = DispatchSession(environment, options, console, client, found.job)
            return await session.follow(run.sent)

    run(main)


async def _find(console: Console, environment: "Environment", request: Request) -> Request:
    try:
        return await find_job(environment, request)
    except JobNotFound as error:
        console.fail(str(error))


def _batch(
    console: Console,
    environment: "Environment",
    connect: "Callable[[], DispatchClient]",
    batch: "Callable[[DispatchClient], Batch]",
    defaults: Request,
    source: str,
    timeout: float | None,
) -> NoReturn:
    from worker.cli.batch import read_requests  # noqa: PLC0415 - heavy
    from worker.cli.running import Run  # noqa: PLC0415

    token = defaults.idempotency_key or f"batch-{secrets.token_hex(8)}"
    try:
        requests = read_requests(source, defaults, token)
    except OSError as error:
        console.fail(f"Error reading the batch: {error.filename}: {(error.strerror or '').lower()}")
    except ValueError as error:
        console.fail(f"Error in the batch: {error}. Nothing was sent.")
    again = f"run it again for the rest, and nothing is sent twice: -idempotency-token {token}"
    if not defaults.idempotency_key:
        console.notice(f"Should this be interrupted, {again}")

    async def main() -> int:
        async with connect() as client:
            return await batch(client).run(requests)

    Run(
        environment.redis_address, timeout, idle=f"What was sent goes on. {again}, which sends nothing twice."
    )(main)


def _positions(console: Console, arguments: list[str], *, optional: bool) -> tuple[str, str]:
    if optional and not arguments:
        return "", ""
    if not 1 <= len(arguments) <= 2:  # noqa: PLR2004 - the job, then perhaps its payload
        console.fail(_USAGE)
    return arguments[0].strip(), arguments[1] if len(arguments) > 1 else ""


def _payload(console: Console, source: str, *, claim_check: bool) -> bytes:
    try:
        payload = b""
        if source == "-":
            payload = sys.stdin.buffer.read()
        elif source:
            payload = Path(source).read_bytes()
    except OSError as error:
        call = "read" if isinstance(error, IsADirectoryError) else "open"
        reason = (error.strerror or type(error).__name__).lower()
        console.fail(f"Error reading input data: {call} {source}: {reason}")
    if len(payload) > PAYLOAD_LIMIT_BYTES and not claim_check:
        console.fail(payload_too_large_text(len(payload)))
    return payload


def _meta(console: Console, pairs: list[str]) -> dict[str, str]:
    meta = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            console.fail(f"Error parsing meta value: {pair}")
        meta[key] = value
    return meta
