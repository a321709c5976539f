"""`dispatch-worker policy`: is a policy file valid, and what does it make of one request?

Knows nothing of the rules; it asks what the worker asks.
"""

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from worker.core.policy import Policy
    from worker.core.policy_explain import Explained

EXIT_REFUSED = 1
EXIT_FAULTY = 2
STDIN = Path("-")

File = Annotated[
    Path,
    typer.Option("--file", envvar="WORKER_ALLOW_FILE", help="The policy (TOML); - reads standard input."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    policy = typer.Typer(help="Check a policy file, and explain what it makes of a request.")
    policy.command("check")(check)
    policy.command("explain")(explain)
    app.add_typer(policy, name="policy", no_args_is_help=True)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML; - reads standard input.")],
    *,
    json: Json = False,
) -> None:
    """Tell every fault of a policy file.

    Exit codes: 0 it is valid, 1 it is not.
    """
    faults: list[str] = []
    told = ""
    try:
        told = _contents(_load(file))
    except SettingsInvalid as error:
        faults = [line.removeprefix("the policy is not valid: ") for line in str(error).splitlines()]
    if json:
        typer.echo(json_text.dumps({"valid": not faults, "faults": faults}, indent=2))
    elif faults:
        typer.echo("\n".join(f"{file}: {fault}" for fault in faults), err=True)
    else:
        typer.echo(f"{file}: valid: {told}")
    raise typer.Exit(EXIT_REFUSED if faults else 0)


def explain(
    *,
    job: Annotated[str, typer.Option(help="ID of the parameterized job.")],
    file: File,
    stream: Annotated[str, typer.Option(help="Short name of the request stream.")] = "requests",
    namespace: Annotated[str, typer.Option(envvar="NOMAD_NAMESPACE", help="Where it goes.")] = "default",
    region: Annotated[str, typer.Option(envvar="NOMAD_REGION", help="Empty: the agent's own.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose request it is.")] = "",
    meta: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    priority: Annotated[int | None, typer.Option(help="None: the job's own.")] = None,
    payload_bytes: Annotated[int, typer.Option(min=0, help="Length of the payload.")] = 0,
    reply_to: Annotated[str, typer.Option(help="Name of the reply stream; empty: the shared one.")] = "",
    json: Json = False,
) -> None:
    """Tell what a policy makes of one request: allowed or not, by which rule, and the limits that hold.

    Exit codes: 0 allowed, 1 not allowed, 2 the policy is not valid.
    """
    from worker.core.model import Request  # noqa: PLC0415 - heavy
    from worker.core.policy_explain import explain as explained_by  # noqa: PLC0415

    given = dict(_pair(text) for text in meta or ())
    request = Request(
        job,
        payload=bytes(payload_bytes),
        meta=given,
        priority=priority,
        reply_to=reply_to,
        tenant=tenant,
    )
    try:
        policy = _load(file)
    except SettingsInvalid as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAULTY) from error
    explained = explained_by(policy, stream, request, namespace, region)
    typer.echo(json_text.dumps(_as_json(explained), indent=2) if json else "\n".join(_lines(explained)))
    raise typer.Exit(0 if explained.allowed else EXIT_REFUSED)


def _load(file: Path) -> "Policy":
    from worker.runtime.policy import load_policy, parse_policy  # noqa: PLC0415 - heavy

    return parse_policy(sys.stdin.buffer.read()) if file == STDIN else load_policy(file)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        message = f"{text!r}: give KEY=VALUE"
        raise typer.BadParameter(message)
    return key, value


def _contents(policy: "Policy") -> str:
    file = policy.file
    streams = "every stream open" if file.streams is None else f"{len(file.streams)} stream tables"
    limits = file.limits
    named = len(limits.jobs) + len(limits.tenants) + len(limits.namespaces) + len(limits.streams)
    count = named + (limits.cap is not None)
    return f"{streams}, {count} limits, {len(file.retries)} retry rules"


def _as_json(explained: "Explained") -> dict[str, Any]:
    retry = explained.retry
    return {
        "allowed": explained.allowed,
        "error_code": explained.error_code,
        "error_message": explained.error_message,
        "table": explained.table,
        "rules": dict(explained.rules),
        "meta": dict(explained.meta),
        "meta_from": dict(explained.meta_from),
        "priority": explained.priority,
        "caps": [cap._asdict() for cap in explained.caps],
        "rates": [rate._asdict() for rate in explained.rates],
        "weight": explained.weight,
        "retry": {"glob": retry.glob, **_retry(retry.rule)} if retry else None,
    }


def _retry(rule: Any) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415

    told: dict[str, Any] = msgspec.to_builtins(rule)
    return told


def _lines(explained: "Explained") -> list[str]:
    table = f'streams."{explained.table}"' if explained.table else "no table"
    lines = [f"{'allowed' if explained.allowed else 'rejected'} by {table}"]
    if not explained.allowed:
        lines.append(f"  {explained.error_message} [{explained.error_code}]")
    lines += [f"  {rule}: {answer}" for rule, answer in explained.rules.items() if answer != "not set"]
    if explained.allowed:
        own = "the job's own"
        lines.append(f"priority: {explained.priority or own}")
        lines += [f"meta {key}={value} ({explained.meta_from[key]})" for key, value in explained.meta.items()]
    lines += [f"cap: {_named(cap.scope, cap.name)} {cap.most} in flight" for cap in explained.caps]
    lines += [
        f"rate: {_named(rate.scope, rate.name)} {rate.per_second:g} a second, {rate.burst} at once"
        for rate in explained.rates
    ]
    lines.append(f"weight: {explained.weight}")
    if retry := explained.retry:
        rule = retry.rule
        lines.append(
            f'retry: retries."{retry.glob}": up to {rule.max_attempts} runs, on {", ".join(rule.on)}, '
            f"after {rule.backoff_seconds:g} to {rule.max_backoff_seconds:g} s"
        )
    else:
        lines.append("retry: none")
    return lines


def _named(scope: str, name: str) -> str:
    return scope if scope == "total" else f"{scope} {name!r}"
