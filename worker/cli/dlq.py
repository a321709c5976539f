"""`dispatch-worker dlq`: dead letters listed, shown, made requests again, or dropped.

What is done to a letter stands in `worker.deadletter`; here are filters, words and pace.
"""

import asyncio
import base64
import dataclasses
import json as json_text
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.console import Console
from worker.cli.monitor import EXIT_ERROR, EXIT_OK
from worker.cli.text import age, duration, one_line, table
from worker.cli.wait import require_entry_id

if TYPE_CHECKING:
    from worker.client import DispatchClient
    from worker.deadletter import DeadLetter, DeadLetters, Filter, WholeLetter

Reason = Annotated[
    str, typer.Option("--reason", metavar="GLOB", help="Error code or verdict, such as 'nomad.*' or poison.")
]
Job = Annotated[str, typer.Option("--job", metavar="GLOB", help="Parameterized job.")]
Tenant = Annotated[str, typer.Option("--tenant", metavar="GLOB", help="The request's tenant.")]
Stream = Annotated[str, typer.Option("--stream", metavar="GLOB", help="Request stream it came through.")]
Older = Annotated[str, typer.Option("--older", metavar="DURATION", help="At least so old, such as 2h.")]
Newer = Annotated[str, typer.Option("--newer", metavar="DURATION", help="At most so old.")]
Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="IDs, as `dlq list` shows them.")
]
Everything = Annotated[bool, typer.Option("--all", help="All of them: needed where nothing else chooses.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]
Rate = Annotated[float, typer.Option("--rate", min=0.01, metavar="N", help="Most letters per second.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines.")]

FROM_THE_LIST = "as `dispatch-worker dlq list` shows it in its first column"

dlq = typer.Typer(
    help="Dead letters: requests that could not be dispatched, or whose end nobody can tell.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(dlq, name="dlq")


@dlq.command("list")
def list_letters(
    *,
    reason: Reason = "",
    job: Job = "",
    tenant: Tenant = "",
    stream: Stream = "",
    older: Older = "",
    newer: Newer = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show at most so many; 0: all.")] = 100,
    json: AsJson = False,
) -> None:
    """List dead letters, the oldest first, and how many there are of each kind."""
    wanted = _filter(reason, job, tenant, stream, older, newer)

    async def main(_: "DispatchClient", letters: "DeadLetters") -> int:
        shown: list[DeadLetter] = []
        kinds: Counter[tuple[str, str]] = Counter()
        async for letter in letters.find(wanted):
            kinds[letter.code or letter.verdict, letter.job] += 1
            if not limit or len(shown) < limit:
                shown.append(letter)
        if json:
            for letter in shown:
                typer.echo(json_text.dumps(_as_json(letter)))
            return EXIT_OK
        _show_list(shown, kinds, await letters.count())
        return EXIT_OK

    _run(main)


@dlq.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dlq list` shows it.")],
    *,
    payload: Annotated[
        Path | None, typer.Option("--payload", metavar="FILE", help="Write the payload there; - for stdout.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show one dead letter: the request as it was, why it died, and what is known of its job."""
    require_entry_id(letter_id, FROM_THE_LIST)

    async def main(client: "DispatchClient", letters: "DeadLetters") -> int:
        whole = await letters.read(letter_id)
        final = await client.result(*whole.letter.key)
        evidence = dict(final.data) if final else {}
        if payload is not None:
            _write(payload, whole.fields.get(b"payload", b""))
        if str(payload) == "-":
            return EXIT_OK
        if json:
            told = _as_json(whole.letter) | {
                "replay_of": whole.replay_of,
                "fields": {_text(name): _text(value) for name, value in _others(whole)},
                "payload_base64": base64.b64encode(whole.fields.get(b"payload", b"")).decode(),
                "evidence": evidence,
            }
            typer.echo(json_text.dumps(told))
            return EXIT_OK
        _show_letter(whole, evidence)
        return EXIT_OK

    _run(main)


@dlq.command("requeue")
def requeue(
    letter_ids: Letters = None,
    *,
    everything: Everything = False,
    reason: Reason = "",
    job: Job = "",
    tenant: Tenant = "",
    stream: Stream = "",
    older: Older = "",
    newer: Newer = "",
    meta: Annotated[
        list[str] | None,
        typer.Option("-meta", "--meta", metavar="KEY=VALUE", help="Set one meta key; repeatable."),
    ] = None,
    unset_meta: Annotated[
        list[str] | None, typer.Option("--unset-meta", metavar="KEY", help="Leave one meta key out.")
    ] = None,
    put: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set one field, such as job=render; repeatable."),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option("--unset", metavar="FIELD", help="Leave a field out, such as deadline."),
    ] = None,
    rate: Rate = 50.0,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make new requests of dead letters, each with a new message ID and `replay_of`.

    Each letter is one atomic step: stop this command whenever you like, and run it again for the rest.
    Exit codes: 0 all of them, 1 some could not be requeued, or an error.
    """
    from worker.deadletter import Edits  # noqa: PLC0415 - heavy

    wanted = _filter(reason, job, tenant, stream, older, newer)
    _choose(letter_ids, wanted, everything=everything)
    edits = Edits(
        meta=_pairs(meta or [], "-meta"),
        meta_unset=unset_meta or [],
        fields={name: value.encode() for name, value in _pairs(put or [], "--set").items()},
        unset=unset or [],
    )

    async def main(_: "DispatchClient", letters: "DeadLetters") -> int:
        async def one(letter: "DeadLetter") -> tuple[str, bool]:
            if fault := await letters.fault(letter, edits):
                return f"not requeued: {fault}", False
            if dry_run:
                return "would be requeued", True
            key = await letters.requeue(letter, None if edits == Edits() else edits)
            if letter_ids and len(letter_ids) == 1 and not json:
                Console.notice(f"Follow it with: dispatch-worker wait {key}")
            return f"requeued as {key}", True

        return await _each(letters, letter_ids, wanted, rate, one, as_json=json)

    _run(main)


@dlq.command("drop")
def drop(
    letter_ids: Letters = None,
    *,
    everything: Everything = False,
    reason: Reason = "",
    job: Job = "",
    tenant: Tenant = "",
    stream: Stream = "",
    older: Older = "",
    newer: Newer = "",
    rate: Rate = 200.0,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Remove dead letters for good."""
    wanted = _filter(reason, job, tenant, stream, older, newer)
    _choose(letter_ids, wanted, everything=everything)
    ask = not (yes or dry_run or letter_ids)
    if ask and not sys.stdin.isatty():
        Console.fail("Nothing was dropped: add --yes, or --dry-run to see what would be.")

    async def main(_: "DispatchClient", letters: "DeadLetters") -> int:
        async def one(letter: "DeadLetter") -> tuple[str, bool]:
            if dry_run:
                return "would be dropped", True
            return ("dropped", True) if await letters.drop(letter.id) else ("was gone already", True)

        def sure(number: int) -> bool:
            return not number or Console.ask(f"Drop {number} dead letters for good? (y/N) ").startswith("y")

        return await _each(
            letters, letter_ids, wanted, rate, one, as_json=json, sure=sure if ask else lambda _: True
        )

    _run(main)


def _run(main: "Callable[[DispatchClient, DeadLetters], Awaitable[int]]") -> None:
    from worker.cli.running import Run  # noqa: PLC0415 - heavy
    from worker.cli.session import Environment  # noqa: PLC0415
    from worker.deadletter import DeadLetters  # noqa: PLC0415

    environment = Environment.read(os.environ)

    async def connected() -> int:
        async with environment.client() as client:
            return await main(client, DeadLetters(client))

    Run(environment.redis_address, None, idle="What was done is done; run the command again for the rest.")(
        connected
    )


async def _each(
    letters: "DeadLetters",
    letter_ids: list[str] | None,
    wanted: "Filter",
    rate: float,
    act: "Callable[[DeadLetter], Awaitable[tuple[str, bool]]]",
    *,
    as_json: bool,
    sure: "Callable[[int], bool]" = lambda _: True,
) -> int:
    """Act on the chosen letters at a pace, and tell of each. Returns the exit code."""
    from worker.deadletter import LetterGone  # noqa: PLC0415 - heavy

    if letter_ids:
        chosen = [(await letters.read(letter_id)).letter for letter_id in letter_ids]
    else:
        # Found first and then acted upon: what is requeued and dies again is not met a second time.
        chosen = [letter async for letter in letters.find(wanted)]
    if not sure(len(chosen)):
        Console.fail("Nothing was done.")
    started, failed = time.monotonic(), 0
    for number, letter in enumerate(chosen):
        await asyncio.sleep(started + number / rate - time.monotonic())
        try:
            text, good = await act(letter)
        except LetterGone:
            text, good = "was gone already", True
        failed += not good
        if as_json:
            typer.echo(
                json_text.dumps({"id": letter.id, "message": str(letter.key), "done": good, "what": text})
            )
        else:
            typer.echo(f"{letter.id}  {letter.key}  {letter.job}: {text}", err=not good)
    if not as_json and len(chosen) != 1:
        typer.echo(f"{len(chosen) - failed} of {len(chosen)} dead letters.", err=True)
    return EXIT_ERROR if failed else EXIT_OK


def _filter(reason: str, job: str, tenant: str, stream: str, older: str, newer: str) -> "Filter":
    from worker.deadletter import Filter  # noqa: PLC0415 - heavy

    return Filter(
        reason,
        job,
        tenant,
        stream,
        older_seconds=duration(older) if older else None,
        newer_seconds=duration(newer) if newer else None,
    )


def _choose(letter_ids: list[str] | None, wanted: "Filter", *, everything: bool) -> None:
    for letter_id in letter_ids or ():
        require_entry_id(letter_id, FROM_THE_LIST)
    if letter_ids and (everything or not wanted.is_empty):
        Console.fail("Give either IDs, or filters, or --all.")
    if not letter_ids and wanted.is_empty and not everything:
        Console.fail("Nothing was chosen: give IDs, a filter such as --reason 'nomad.*', or --all.")


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            Console.fail(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def _show_list(shown: "list[DeadLetter]", kinds: Counter[tuple[str, str]], total: int) -> None:
    now_ms = time.time() * 1000
    rows = [
        (
            letter.id,
            age((now_ms - letter.at_ms) / 1000),
            str(letter.key),
            letter.job,
            letter.tenant,
            letter.code or letter.verdict,
            one_line(letter.message),
        )
        for letter in shown
    ]
    matching = sum(kinds.values())
    if rows:
        for line in table(("ID", "AGE", "MESSAGE", "JOB", "TENANT", "REASON", "WHAT HAPPENED"), rows):
            typer.echo(line)
        typer.echo("")
        for line in table(
            ("COUNT", "REASON", "JOB"), [(str(n), code, name) for (code, name), n in kinds.most_common()]
        ):
            typer.echo(line)
        typer.echo("")
    if not total:
        Console.notice("There are no dead letters.")
        return
    Console.notice(f"{matching} of {total} dead letters match, {len(rows)} shown.")
    if rows:
        Console.notice(f"One in full: dispatch-worker dlq show {rows[0][0]}")


def _show_letter(whole: "WholeLetter", evidence: dict[str, Any]) -> None:
    letter = whole.letter
    rows = {
        "Dead letter": letter.id,
        "Message": str(letter.key),
        "Replay of": whole.replay_of,
        "Verdict": letter.verdict,
        "Error": f"{letter.message} [{letter.code}]",
        "At": letter.at,
        "Worker": f"{letter.worker} (attempt {letter.attempt}, {letter.takeovers} workers died on it)",
        "Job": letter.job,
        "Tenant": letter.tenant,
        "Dispatched job": letter.dispatched_job_id,
        "Payload": f"{letter.payload_bytes} bytes",
    }
    for name, value in rows.items():
        if value:
            typer.echo(f"{name:<15} {value}")
    typer.echo("\nThe request's fields:")
    for field_name, content in _others(whole):
        typer.echo(f"  {_text(field_name)} = {one_line(_text(content), 400)}")
    if evidence:
        typer.echo("\nEvidence:")
        typer.echo(json_text.dumps(evidence, indent=2))
    typer.echo(f"\nTry it again with:  dispatch-worker dlq requeue {letter.id}", err=True)


def _others(whole: "WholeLetter") -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in whole.fields.items() if name != b"payload"]


def _as_json(letter: "DeadLetter") -> dict[str, Any]:
    told = dataclasses.asdict(letter)
    stream, message_id = told.pop("key")
    return {"id": letter.id, "stream": stream, "message_id": message_id, **told}


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _write(target: Path, payload: bytes) -> None:
    if str(target) == "-":
        sys.stdout.buffer.write(payload)
        sys.stdout.buffer.flush()
        return
    try:
        target.write_bytes(payload)
    except OSError as error:
        Console.fail(f"the payload cannot be written to {target}: {error.strerror}")
