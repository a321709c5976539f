"""`dispatch-worker doctor`: is everything there that a worker of these settings needs?

Knows nothing of the checks; it prints what they found.
"""

import asyncio
import dataclasses
import json as json_text
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.monitor import EXIT_ERROR, EXIT_OK

if TYPE_CHECKING:
    from worker.runtime.doctor import Finding
    from worker.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JOB]...", help="Jobs that must exist, besides those the policy names."),
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON line per finding.")] = False,
) -> None:
    """Check Redis, Nomad, the token's rights and the jobs; tell what to fix. Run it as the worker is run.

    Exit codes: 0 a worker will work (perhaps with warnings), 1 it will not.
    """
    from worker.settings import load  # noqa: PLC0415 - heavy

    raise typer.Exit(asyncio.run(_examine(load(), jobs or [], as_json=json)))


async def _examine(settings: "Settings", jobs: list[str], *, as_json: bool) -> int:
    from worker.runtime.doctor import Grade, examine  # noqa: PLC0415

    found: list[Finding] = []
    async with aclosing(examine(settings, jobs)) as findings:
        async for finding in findings:
            found.append(finding)
            if as_json:
                typer.echo(json_text.dumps(dataclasses.asdict(finding)))
            else:
                _show(finding)
    failed = sum(finding.grade is Grade.FAIL for finding in found)
    warned = sum(finding.grade is Grade.WARN for finding in found)
    if not as_json:
        typer.echo("")
        typer.echo(f"{len(found)} checks: {failed} failed, {warned} with a warning.")
    return EXIT_ERROR if failed else EXIT_OK


def _show(finding: "Finding") -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.grade.value]
    grade = typer.style(f"{finding.grade.value.upper():<4}", fg=colour)
    typer.echo(f"{grade}  {finding.area:<5}  {finding.what}: {finding.told}")
    if finding.advice:
        typer.echo(f"             → {finding.advice}")
