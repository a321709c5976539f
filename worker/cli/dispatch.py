"""`dispatch-worker dispatch`: as `nomad job dispatch`, through the queue.

Options, output lines and exit codes are those of Nomad's command; the words are in `monitor`.
"""

import os
import secrets
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from worker.cli.console import Console, NomadCommand
from worker.cli.lookup import JobNotFound, find_job, job_names
from worker.cli.monitor import payload_too_large_text
from worker.core.model import PAYLOAD_LIMIT_BYTES, Request

if TYPE_CHECKING:
    from worker.cli.session import Environment

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
            "ignore_unknown_options": True,
            "help_option_names": ["-h", "-help", "--help"],
        },
    )(dispatch)


def dispatch(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB [INPUT]",
            help="Parameterized job, and a payload file or - for stdin.",
            autocompletion=job_names,
        ),
    ] = None,
    *,
    meta: Annotated[
        list[str] | None, typer.Option("-meta", "--meta", metavar="KEY=VALUE", help="Metadata; repeatable.")
    ] = None,
    detach: Annotated[
        bool,
        typer.Option("-detach", "--detach", help="Return when the job is dispatched; no result is reported."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("-wait", "--wait", help="Wait for the job's end; exit with its task's exit code.")
    ] = False,
    idempotency_token: Annotated[
        str,
        typer.Option(
            "-idempotency-token", "--idempotency-token", help="One dispatch per token, namespace and job."
        ),
    ] = "",
    id_prefix_template: Annotated[
        str, typer.Option("-id-prefix-template", "--id-prefix-template", help="Put into the job's ID.")
    ] = "",
    priority: Annotated[str, typer.Option("-priority", "--priority", help="Overrides the job's own.")] = "",
    namespace: Annotated[str, typer.Option("-namespace", "--namespace", help="Or NOMAD_NAMESPACE.")] = "",
    region: Annotated[str, typer.Option("-region", "--region", help="Or NOMAD_REGION.")] = "",
    address: Annotated[
        str,
        typer.Option(
            "-address", "--address", help="Nomad's address, for links, job prefixes and logs; or NOMAD_ADDR."
        ),
    ] = "",
    verbose: Annotated[bool, typer.Option("-verbose", "--verbose", help="Show whole IDs.")] = False,
    ui: Annotated[bool, typer.Option("-ui", "--ui", help="Open the job in the browser.")] = False,
    stream: Annotated[
        str, typer.Option("--stream", help="Request stream; default: the first of WORKER_STREAMS.")
    ] = "",
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up waiting after this.")
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="FILE",
            help="Many requests: one JSON object a line; - for stdin. JOB is optional.",
        ),
    ] = "",
    claim_check: Annotated[
        bool,
        typer.Option(
            "--claim-check", help="Keep a payload beyond 16 KiB in Redis; the job fetches it by its meta."
        ),
    ] = False,
    follow_logs: Annotated[
        bool, typer.Option("--follow-logs", help="Show what the tasks write; asks Nomad. Implies --wait.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON line per reply.")] = False,
) -> None:
    """Dispatch a parameterized job through the queue, as `nomad job dispatch` does directly.

    Exit codes: 0 placed or detached, 1 error, 2 not placeable now; with -wait the task's own.
    """
    from worker.cli.session import (  # noqa: PLC0415 - heavy
        DispatchSession,
        Environment,
        Options,
        Run,
        cancel_and_follow,
    )
    from worker.client import RedisClaims  # noqa: PLC0415

    console = Console(json_lines=json)
    environment = Environment.read(os.environ).with_address(address)
    job, source = _positions(context, console, arguments or [], optional=bool(batch))
    wait = wait or follow_logs
    if follow_logs and not environment.nomad_address:
        console.fail("--follow-logs asks Nomad: set NOMAD_ADDR, and a token with read-job and read-logs")
    if wait and detach:
        console.fail("-wait and -detach exclude each other")
    request = Request(
        job=job,
        payload=_payload(console, source, claim_check=claim_check),
        meta=_meta(console, meta or []),
        namespace=namespace or environment.namespace or None,
        region=region or environment.region or None,
        priority=_priority(console, priority),
        id_prefix=id_prefix_template,
        detach=detach,
        idempotency_key=idempotency_token,
    )
    if batch:
        _batch(console, environment, request, batch, stream=stream, timeout=timeout, wait=wait, json=json)
    options = Options(detach, wait, verbose, ui, idempotency_token, follow_logs)
    run = Run(timeout, cancel=partial(cancel_and_follow, environment, console) if wait else None)

    async def main() -> int:
        found = await _find(console, environment, request)
        async with environment.client(RedisClaims() if claim_check else None) as client:
            run.sent = await client.send(found, stream=stream or environment.stream)
            session = DispatchSession(environment, options, console, client, found.job)
            return await session.follow(run.sent)

    run(main)


async def _find(console: Console, environment: "Environment", request: Request) -> Request:
    try:
        job = await find_job(environment, request.job, request.namespace or "", request.region or "")
    except JobNotFound as error:
        console.fail(str(error))
    return replace(request, job=job)


def _batch(
    console: Console,
    environment: "Environment",
    defaults: Request,
    source: str,
    *,
    stream: str,
    timeout: float | None,
    wait: bool,
    json: bool,
) -> NoReturn:
    from worker.cli.batch import Batch, read_requests  # noqa: PLC0415 - heavy
    from worker.cli.session import Run  # noqa: PLC0415

    token = defaults.idempotency_key or f"batch-{secrets.token_hex(8)}"
    try:
        requests = read_requests(source, defaults, token)
    except OSError as error:
        console.fail(f"Error reading the batch: {error.filename}: {(error.strerror or '').lower()}")
    except ValueError as error:
        console.fail(f"Error in the batch: {error}. Nothing was sent.")
    again = f"For the rest run it again with: -idempotency-token {token}"
    if not defaults.idempotency_key:
        console.notice(f"Should this be interrupted: {again[0].lower()}{again[1:]}")

    async def main() -> int:
        async with environment.client() as client:
            return await Batch(client, stream or environment.stream, wait, json).run(requests)

    Run(timeout, idle=f"What was sent goes on. {again}, which sends nothing twice.")(main)


def _positions(
    context: typer.Context, console: Console, arguments: list[str], *, optional: bool
) -> tuple[str, str]:
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            typer.echo(context.get_help())
            console.fail(f"flag provided but not defined: {argument.partition('=')[0]}")
    if optional and not arguments:
        return "", ""
    if not 1 <= len(arguments) <= 2:  # noqa: PLR2004 - the job, then perhaps its payload
        console.fail(_USAGE)
    return arguments[0], arguments[1] if len(arguments) > 1 else ""


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


def _priority(console: Console, text: str) -> int | None:
    try:
        # 0 is how Nomad's command says "not given".
        return int(text or "0") or None
    except ValueError:
        console.fail(f'invalid value "{text}" for flag -priority: parse error')
