"""`dispatch-worker cancel`: stop one request, before or after its dispatch.

Only orders it; what became of the request is in its final reply.
"""

import json as json_text
import os
from typing import Annotated

import typer

from worker.cli.command import GoCommand
from worker.cli.console import Console
from worker.cli.monitor import EXIT_ERROR, EXIT_OK, end_lines
from worker.cli.wait import parse_message
from worker.core.model import Verdict
from worker.core.reply import Reply


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("cancel", cls=GoCommand)(cancel)


def cancel(
    message: Annotated[
        str, typer.Argument(metavar="ID", help="Message ID, or <stream>:<id> as other commands print it.")
    ],
    *,
    stream: Annotated[
        str,
        typer.Option("--stream", help="Request stream of a bare ID; default: the first of WORKER_STREAMS."),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", "-wait", help="Wait until the request has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up waiting after this.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The answer as JSON lines.")] = False,
) -> None:
    """Cancel a request: it is not dispatched any more or, when it is, its job is stopped.

    Exit codes: 0 ordered, with --wait: ended as cancelled; 1 it had ended otherwise, or an error.
    """
    from worker.cli.running import Run  # noqa: PLC0415 - heavy
    from worker.cli.session import Environment, replies_to  # noqa: PLC0415
    from worker.client import Cancelled  # noqa: PLC0415

    console = Console(json_lines=json)
    environment = Environment.read(os.environ)
    key = parse_message(message, stream or environment.stream)
    words = {
        Cancelled.PREVENTED: f"Request {key} is cancelled: it will not be dispatched.",
        Cancelled.ORDERED: f"Cancellation of {key} ordered: its job will be stopped.",
    }
    run = Run(environment.redis_address, timeout)

    def ended(final: Reply | None) -> int:
        if final is None:
            console.lines([f"Request {key} had ended; how is not known any more."])
            return EXIT_ERROR
        console.reply(final)
        console.lines(end_lines(final))
        if final.verdict is Verdict.DETACHED:
            console.notice(
                f"It was detached, so nobody watches its job. Stop it with: nomad job stop "
                f"-namespace {final.namespace or 'default'} {final.dispatched_job_id}"
            )
        return EXIT_OK if final.verdict is Verdict.CANCELLED else EXIT_ERROR

    async def main() -> int:
        async with environment.client() as client:
            answer = await client.cancel(key.stream, key.id)
            if json:
                told = {"stream": key.stream, "id": key.id, "cancel": answer.value}
                typer.echo(json_text.dumps(told))
            if answer is Cancelled.TOO_LATE:
                return ended(await client.result(key.stream, key.id))
            console.lines([words[answer]])
            run.sent = await client.find(key.stream, key.id)
            if not wait:
                return EXIT_OK
            async for reply in replies_to(client, run.sent):
                if reply.final:
                    return ended(reply)
        return EXIT_ERROR

    run(main)
