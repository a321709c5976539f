"""The command `dispatch-worker`: its subcommands, and how an error ends one.

Knows nothing of what the commands do: each module registers its own, and imports what it needs when run.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from worker import __version__
from worker.cli import (
    cancel,
    config,
    dev,
    dispatch,
    dlq,
    doctor,
    healthcheck,
    policy,
    run,
    schema,
    simulator,
    status,
    wait,
)
from worker.errors import WorkerError

NAME = "dispatch-worker"
INTERRUPTED = 130

app = typer.Typer(
    help="Dispatches Nomad parameterized jobs from a Redis stream and reports how each one truly ended.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - the signature is typer's
    if asked:
        typer.echo(f"dispatch-worker {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    del version


for module in (
    run,
    dev,
    dispatch,
    wait,
    cancel,
    status,
    dlq,
    doctor,
    simulator,
    config,
    policy,
    schema,
    healthcheck,
):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code. A named error is one clear message, not a traceback."""
    try:
        app(arguments, prog_name=NAME)
    except WorkerError as error:
        lines = str(error).splitlines() or [error.code]
        typer.echo("\n".join(f"dispatch-worker: {line}" for line in lines), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
