"""`dispatch-worker dev`: Redis, Nomad simulator and worker in one process tree, to try everything out.

Knows nothing of the stack's inside; prints its addresses, and the demo's results.
"""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.jobfiles import load_jobs

if TYPE_CHECKING:
    from worker.dev.demo import Result
    from worker.dev.stack import DevStack


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    *,
    jobs: Annotated[
        Path | None, typer.Option("--jobs", help="Folder of job files (JSON or HCL) besides the demo jobs.")
    ] = None,
    demo: Annotated[
        int, typer.Option("--demo", help="Send so many varied requests, show the results, and exit.")
    ] = 0,
    log_level: Annotated[str, typer.Option("--log-level", help="The worker's log level.")] = "warning",
) -> None:
    """Run an embedded Redis, the Nomad simulator and a worker until interrupted.

    With --demo the exit code is 0 only if every reply is the expected one.
    """
    raise typer.Exit(asyncio.run(_run(_load(jobs), demo, log_level)))


def _load(folder: Path | None) -> list[dict[str, Any]]:
    from worker.dev.demo_jobs import demo_jobs  # noqa: PLC0415 - heavy: --help does without

    return demo_jobs() + (load_jobs(folder) if folder else [])


async def _run(jobs: list[dict[str, Any]], number: int, log_level: str) -> int:
    from worker.dev.stack import DevStack  # noqa: PLC0415

    settings = {"WORKER_LOG_LEVEL": log_level, "WORKER_LOG_FORMAT": "console"}
    async with DevStack(jobs, settings=settings) as stack:
        _introduce(stack, [job["ID"] for job in jobs])
        if number:
            return await _demo(stack, number)
        _invite(stack)
        await stack.ended()
    return 0


def _introduce(stack: "DevStack", jobs: list[str]) -> None:
    typer.echo(f"Redis   {stack.redis.url}")
    typer.echo(f"Nomad   {stack.nomad.address}  (simulator; jobs: {', '.join(jobs)})")
    typer.echo(f"Worker  {stack.http_address}  (/metrics /healthz /readyz /status)")
    typer.echo("")


def _invite(stack: "DevStack") -> None:
    command = f"REDIS_URL={stack.redis.url} NOMAD_ADDR={stack.nomad.address} {_this_command()}"
    typer.echo("Send a request from another terminal:")
    typer.echo(f"  {command} dispatch --wait -meta who=ada demo-render")
    typer.echo("See what is going on:")
    typer.echo(f"  {command} status")
    typer.echo("Ctrl-C ends it all.")
    typer.echo("")


def _this_command() -> str:
    """As it can be typed where this one was."""
    typed = Path(sys.argv[0])
    if typed.stem != "dispatch-worker":
        return f"{sys.executable} -m worker"
    found = shutil.which(typed.name)
    if found and Path(found).samefile(typed):
        return typed.name
    return str(typed.relative_to(Path.cwd())) if typed.is_relative_to(Path.cwd()) else str(typed)


async def _demo(stack: "DevStack", number: int) -> int:
    from redis.asyncio import Redis  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from worker.core.keys import Keys  # noqa: PLC0415
    from worker.dev.demo import demo  # noqa: PLC0415

    console = Console()
    redis = Redis.from_url(stack.redis.url)
    try:
        async with stack.client() as client:
            with Progress(console=console) as progress:
                bar = progress.add_task("Final replies", total=number)
                results = await demo(client, redis, Keys("{dispatch}"), number, lambda: progress.advance(bar))
    finally:
        await redis.aclose()
    console.print(_table(results))
    wrong = sum(not result.as_expected for result in results)
    if wrong:
        console.print(f"{wrong} of {number} replies were not the expected ones.", style="bold red")
    else:
        console.print(f"All {number} replies were the expected ones.", style="bold green")
    return 1 if wrong else 0


def _table(results: "list[Result]") -> Any:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Request", min_width=24)
    for heading in ("Verdict", "Exit", "Error", "Expected"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        reply, case = result.reply, result.case
        table.add_row(
            case.what,
            reply.verdict.value if reply and reply.verdict else "no reply",
            "" if reply is None or reply.exit_code is None else str(reply.exit_code),
            reply.error_code if reply else "",
            "yes" if result.as_expected else f"no: {case.verdict.value}",
            style="" if result.as_expected else "red",
        )
    return table
