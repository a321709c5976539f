"""`dispatch-worker status`: what waits, who works, what died; or all that is known of one message.

Reads Redis alone, so it works with a producer's settings and while no worker is up.
"""

import json as json_text
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.command import GoCommand
from worker.cli.console import Console
from worker.cli.monitor import EXIT_OK
from worker.cli.text import age, count, table
from worker.cli.wait import parse_message
from worker.core.instants import entry_time_ms, format_rfc3339
from worker.core.model import DEAD_LETTERED, MessageKey, Phase

if TYPE_CHECKING:
    from worker.adapters.redis.lookback import Story
    from worker.cli.session import Environment
    from worker.core import model


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status", cls=GoCommand)(status)


def status(
    message: Annotated[
        str, typer.Argument(metavar="[ID]", help="Message ID, or <stream>:<id>; without it an overview.")
    ] = "",
    *,
    stream: Annotated[
        str,
        typer.Option("--stream", help="Request stream of a bare ID; default: the first of WORKER_STREAMS."),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show streams, workers and dead letters, or one message.

    Exit codes: 0 shown, 1 no such message, or an error.
    """
    from worker.cli.running import Run  # noqa: PLC0415 - heavy
    from worker.cli.session import Environment  # noqa: PLC0415

    environment = Environment.read(os.environ)
    key = parse_message(message, stream or environment.stream) if message else None

    async def main() -> int:
        from worker.adapters.redis.connection import Purpose, connect  # noqa: PLC0415

        redis: Any = connect(environment.redis, Purpose.OPS)
        try:
            if key is None:
                return await _overview(redis, environment, as_json=json)
            return await _message(redis, environment, key, as_json=json)
        finally:
            await redis.aclose()

    Run(environment.redis_address, None, idle="Nothing was changed.")(main)


async def _overview(redis: Any, environment: "Environment", *, as_json: bool) -> int:
    from worker.adapters.redis.connection import FAILURES, translate  # noqa: PLC0415
    from worker.adapters.redis.survey import RedisSurvey  # noqa: PLC0415
    from worker.core.keys import Keys  # noqa: PLC0415

    keys = Keys(environment.prefix)
    survey = RedisSurvey(redis, keys, streams=environment.streams, group=environment.group)
    backlog, workers = await survey.backlog(), await survey.workers()
    try:
        cancels = await redis.zcard(keys.cancels)
    except FAILURES as error:
        raise translate(error) from error
    if as_json:
        told = {
            "streams": {
                name: {
                    "waiting": one.lag,
                    "queued": one.queued,
                    "delayed": one.delayed,
                    "in_hand": one.in_hand,
                    "oldest_in_hand_seconds": one.oldest_pending_seconds,
                }
                for name, one in backlog.streams.items()
            },
            "workers": [
                {
                    **one.about,
                    "name": one.name,
                    "alive": one.lease_remaining_seconds > 0,
                    "lease_remaining_seconds": round(one.lease_remaining_seconds, 3),
                }
                for one in workers
            ],
            "dead_letters": backlog.dead_letters,
            "dead_letters_expiring": bool(backlog.dead_letters_expire),
            "cancels_open": cancels,
        }
        typer.echo(json_text.dumps(told))
        return EXIT_OK
    _print(
        table(
            ("STREAM", "WAITING", "QUEUED", "DELAYED", "IN HAND", "OLDEST"),
            [
                (
                    name,
                    count(one.lag),
                    count(one.queued),
                    count(one.delayed),
                    count(one.in_hand),
                    age(one.oldest_pending_seconds) if one.pending else "-",
                )
                for name, one in backlog.streams.items()
            ],
        )
    )
    if workers:
        rows = [
            (
                one.name,
                "alive" if one.lease_remaining_seconds > 0 else "gone",
                age(one.lease_remaining_seconds),
                one.about.get("version", "?"),
            )
            for one in workers
        ]
        _print(["", *table(("WORKER", "STATE", "LEASE", "VERSION"), rows)])
    letters = count(backlog.dead_letters)
    _print(["", f"Dead letters:       {letters}", f"Open cancellations: {count(cancels)}"])
    waiting = sum(one.lag or 0 for one in backlog.streams.values())
    advice = []
    if not any(one.lease_remaining_seconds > 0 for one in workers):
        what = f"{waiting} requests wait, and nobody" if waiting else "Nobody"
        advice.append(f"{what} is there to work: dispatch-worker run")
    if backlog.dead_letters:
        advice.append("Look at the dead letters: dispatch-worker dlq list")
    if backlog.dead_letters_expire:
        advice.append(
            "The oldest dead letters are going to be dropped for their age. Requeue what you need: "
            "dispatch-worker dlq requeue ID"
        )
    for line in advice:
        Console.notice(line)
    return EXIT_OK


async def _message(redis: Any, environment: "Environment", key: MessageKey, *, as_json: bool) -> int:
    from worker.adapters.redis.lookback import RedisLookback  # noqa: PLC0415
    from worker.core.keys import Keys  # noqa: PLC0415

    story = await RedisLookback(redis, Keys(environment.prefix)).story(key)
    if story is None:
        Console.fail(
            f"No message {key}: never sent, or forgotten (WORKER_LEDGER_RETENTION_SECONDS). "
            "Other streams: give <stream>:<id>."
        )
    told = _told(story)
    if as_json:
        data = dict(story.final.data) if story.final else {}
        typer.echo(
            json_text.dumps({name.replace(" ", "_"): value for name, value in told.items()} | {"data": data})
        )
    else:
        for name, value in told.items():
            typer.echo(f"{name.capitalize():<16}{value}")
        for line in _advice(story):
            Console.notice(line)
    return EXIT_OK


def _told(story: "Story") -> dict[str, str | int]:
    record = story.record
    told: dict[str, str | int | None] = {
        "message": str(story.key),
        "sent": format_rfc3339(entry_time_ms(story.key.id)),
    }
    if record is None:
        return {**{name: value for name, value in told.items() if value}, "state": "waiting"}
    outcome = record.outcome
    told |= {
        "state": ", ".join(dict.fromkeys(filter(None, (record.phase.value, record.shown)))),
        "verdict": outcome.verdict.value if outcome else "",
        "exit code": outcome.exit_code if outcome else None,
        "error": f"{outcome.error_message} [{outcome.error_code}]" if outcome and outcome.error_code else "",
        "job": record.routing.job,
        "namespace": record.routing.namespace,
        "tenant": record.routing.tenant,
        "dispatched job": record.job_id,
        "evaluation": record.eval_id,
        "attempt": record.attempt or None,
        **{f"run {run.attempt}": _run(run) for run in record.runs},
        "next run": _instant(record.retry_at_ms) if record.runs and not record.job_id else "",
        "takeovers": record.takeovers or None,
        "owner": story.owner,
        "stopping": record.stopping or ("cancelled" if record.cancel else ""),
        "received": _instant(record.received_at_ms),
        "dispatched": _instant(record.dispatched_at_ms),
        "placed": _instant(record.placed_at_ms),
        "finished": _instant(story.finished_at_ms),
        "reply": record.reply_id,
    }
    return {name: value for name, value in told.items() if value not in {"", None}}


def _run(run: "model.Run") -> str:
    code = "" if run.exit_code is None else f", exit code {run.exit_code}"
    return f"{run.verdict.value}{code} at {format_rfc3339(run.ended_at_ms)}: {run.job_id}"


def _instant(unix_ms: int) -> str:
    return format_rfc3339(unix_ms) if unix_ms else ""


def _advice(story: "Story") -> list[str]:
    record = story.record
    if record is None:
        return ["No worker has read it yet. Are there any?  dispatch-worker status"]
    if record.phase is not Phase.SETTLED:
        return [f"Follow it: dispatch-worker wait {story.key}   Stop it: dispatch-worker cancel {story.key}"]
    if record.outcome and record.outcome.verdict in DEAD_LETTERED:
        return ["It is a dead letter: dispatch-worker dlq list"]
    return []


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
