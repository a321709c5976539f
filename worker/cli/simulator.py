"""`dispatch-worker simulator`: a Nomad cluster in memory, alone, on a port.

Knows nothing of how it works; it is for development and tests, and guards nothing.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.jobfiles import load_jobs


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulator")(simulator)


def simulator(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65_535)] = 4646,
    jobs: Annotated[Path | None, typer.Option(help="Folder of job files, JSON or HCL.")] = None,
    nodes: Annotated[int, typer.Option(help="How many client nodes there are.", min=0, max=1_000)] = 2,
) -> None:
    """Run the Nomad simulator until interrupted."""
    loaded = load_jobs(jobs) if jobs else []
    try:
        asyncio.run(_serve(host, port, loaded, nodes))
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error}"
        raise typer.BadParameter(message) from error


async def _serve(host: str, port: int, jobs: Sequence[Mapping[str, Any]], nodes: int) -> None:
    from worker.dev.simulator import serve  # noqa: PLC0415 - heavy

    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    started.add_done_callback(lambda address: typer.echo(f"Nomad simulator on {address.result()}"))
    task = asyncio.create_task(serve(host, port, jobs, started=started, nodes=nodes))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
