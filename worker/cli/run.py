"""`dispatch-worker run`: the daemon.

Decides nothing; settings come from the environment only.
"""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run() -> None:
    """Run a worker until it is told to stop (SIGTERM or SIGINT)."""
    from worker.settings import load  # noqa: PLC0415 - heavy: other commands start without it

    settings = load()

    from worker.runtime import app  # noqa: PLC0415 - heavier: faulty settings are told without it

    raise typer.Exit(app.run(settings))
