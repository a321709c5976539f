"""`dispatch-worker wait`: follow one request to its end and exit with its task's exit code.

The words are in `monitor`; what the message was asked to do does not matter here.
"""

import os
import re
from contextlib import aclosing
from functools import partial
from typing import Annotated

import typer

from worker.cli.command import GoCommand
from worker.cli.console import Console
from worker.cli.monitor import EXIT_ERROR, Monitor, end_lines, exit_code
from worker.core.model import MessageKey
from worker.core.reply import Reply

_ENTRY_ID = re.compile(r"\d{1,20}-\d{1,20}")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("wait", cls=GoCommand)(wait)


def wait(
    message: Annotated[
        str, typer.Argument(metavar="ID", help="Message ID, or <stream>:<id> as other commands print it.")
    ],
    *,
    stream: Annotated[
        str,
        typer.Option("--stream", help="Request stream of a bare ID; default: the first of WORKER_STREAMS."),
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-verbose", help="Show whole IDs.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up waiting after this.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line per reply.")] = False,
) -> None:
    """Follow a request to its end, now or long after.

    Exit codes: 0 succeeded, the task's own where it failed, 2 never placed, 1 anything else.
    """
    from worker.cli.running import Run  # noqa: PLC0415 - heavy
    from worker.cli.session import Environment, cancel_and_follow, replies_to  # noqa: PLC0415

    console = Console(json_lines=json)
    environment = Environment.read(os.environ)
    key = parse_message(message, stream or environment.stream)
    monitor = Monitor(verbose=verbose)
    run = Run(environment.redis_address, timeout, cancel=partial(cancel_and_follow, environment, console))

    def show(reply: Reply) -> None:
        console.reply(reply)
        console.lines(monitor.lines(reply))
        if reply.final:
            console.lines(end_lines(reply))

    async def main() -> int:
        async with environment.client() as client:
            run.sent = await client.find(key.stream, key.id)
            final = await client.result(key.stream, key.id)
            if final is not None:
                show(final)
                return exit_code(final)
            async with aclosing(replies_to(client, run.sent)) as replies:
                async for reply in replies:
                    show(reply)
                    if reply.final:
                        return exit_code(reply)
        return EXIT_ERROR

    run(main)


def require_entry_id(text: str, source: str) -> None:
    """End the command unless this is an entry ID as Redis writes one; `source` tells where to find it."""
    if not _ENTRY_ID.fullmatch(text):
        Console.fail(f"{text!r} is no ID: give one like 1719999999999-0, {source}.")


def parse_message(text: str, default_stream: str) -> MessageKey:
    """A message's identity as people give it: `1719999999999-0` or `high:1719999999999-0`."""
    stream, colon, message_id = text.rpartition(":")
    require_entry_id(message_id, "as `dispatch` and the replies name it")
    return MessageKey(stream if colon else default_stream, message_id)
