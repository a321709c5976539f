"""`dispatch-worker healthcheck`: asks the worker of the same settings whether it is alive.

Knows nothing of what makes a worker healthy: /healthz says so.
"""

from http.client import HTTPConnection, HTTPException
from typing import Annotated

import typer

EVERY_INTERFACE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound to: looked up
OK = 200


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("healthcheck")(healthcheck)


def healthcheck(
    *,
    ready: Annotated[bool, typer.Option(help="Ask /readyz instead: can it take work now?")] = False,
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.1)] = 3.0,
) -> None:
    """Exit 0 if the worker on WORKER_HTTP_ADDR is alive, 1 if not or if it does not answer."""
    from worker.settings import load  # noqa: PLC0415 - heavy

    address = load().http_addr
    host, port = EVERY_INTERFACE.get(address.host, address.host), address.port
    connection = HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/readyz" if ready else "/healthz")
        response = connection.getresponse()
        status, text = response.status, response.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        status, text = 0, f"no answer from {host}:{port}: {error}"
    finally:
        connection.close()
    typer.echo(text, err=status != OK)
    raise typer.Exit(0 if status == OK else 1)
