"""What must be true after any fault, proved from the data in Redis and from Nomad's own record.

Reads no logs, and believes no worker: whatever a worker says of itself is what is being checked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.processes.fleet import KEYS, STREAM, Fleet
from worker.core.model import MessageKey
from worker.core.reply import Reply


@dataclass(frozen=True, slots=True)
class Child:
    """One job that Nomad made, and whether its work was truly done."""

    job_id: str
    token: str
    exit_codes: tuple[int, ...]
    """Of every task run that ended; empty while nothing did, or where Nomad has forgotten the job."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the judgement rests on."""

    sent: Mapping[str, int | None]
    """Message ID to the exit code its task was told to end with; None: it can never be dispatched."""
    replies: Sequence[Reply]
    children: Sequence[Child]
    pending: int
    lag: int
    states: Mapping[str, str]
    """Message ID to the state in the ledger; empty: there is none."""


async def gather(world: Fleet, sent: Mapping[str, int | None]) -> Evidence:
    """Read Redis and Nomad's record."""
    groups = [group for group in await world.redis.xinfo_groups(STREAM) if group["name"] == b"workers"]
    delivered = groups[0]["last-delivered-id"] if groups else b"0-0"
    behind = await world.redis.xrange(STREAM, b"(" + delivered, "+")
    pipeline = world.redis.pipeline(transaction=False)
    for message_id in sent:
        pipeline.hget(KEYS.message(MessageKey("requests", message_id)), "state")
    states = [state.decode() if state else "" for state in await pipeline.execute()]
    return Evidence(
        sent=sent,
        replies=await world.replies(),
        children=[_child(world, entry) for entry in world.dispatched()],
        pending=await world.pending(),
        lag=len(behind),
        states=dict(zip(sent, states, strict=True)),
    )


def _child(world: Fleet, entry: Mapping[str, Any]) -> Child:
    codes = [
        event.exit_code
        for alloc in world.nomad.state.allocs.values()
        if alloc.job_id == entry["job_id"]
        for task in (alloc.task_states or {}).values()
        for event in task.events
        if event.type == "Terminated"
    ]
    return Child(entry["job_id"], entry["token"], tuple(codes))


def violations(found: Evidence) -> list[str]:
    """Sentences about what is not as promised; empty: all is well."""
    return [
        *_replies_once_and_in_order(found),
        *_one_child_per_token(found),
        *_no_false_success(found),
        *_nothing_left(found),
    ]


def _replies_once_and_in_order(found: Evidence) -> list[str]:
    finals = Counter(reply.id for reply in found.replies if reply.final)
    faults = [
        f"{message_id} has {finals[message_id]} final replies"
        for message_id in found.sent
        if finals[message_id] != 1
    ]
    faults += [
        f"a final reply to {message_id}, which was never sent" for message_id in finals.keys() - found.sent
    ]
    by_message: dict[str, list[Reply]] = {}
    for reply in found.replies:
        by_message.setdefault(reply.id, []).append(reply)
    for message_id, replies in by_message.items():
        seqs = [reply.seq for reply in replies]
        if seqs != list(range(1, len(seqs) + 1)):
            faults.append(f"the replies to {message_id} are numbered {seqs}")
        if any(reply.final for reply in replies[:-1]):
            faults.append(f"{message_id} has a reply after its final one")
    return faults


def _one_child_per_token(found: Evidence) -> list[str]:
    tokens = Counter(child.token for child in found.children)
    faults = [f"{count} jobs for the token {token!r}" for token, count in tokens.items() if count > 1]
    faults += [
        f"a job for the token {token!r} that no message has"
        for token in tokens
        if token.partition("/")[0] not in found.sent
    ]
    return faults


def _no_false_success(found: Evidence) -> list[str]:
    faults = []
    children = {child.token: child for child in found.children}
    for reply in found.replies:
        if not reply.final:
            continue
        # A run after the first has the token `<message ID>/<its number>`.
        token = f"{reply.id}/{reply.attempt}" if reply.attempt > 1 else reply.id
        child, told = children.get(token), found.sent.get(reply.id)
        if reply.verdict == "succeeded" and (child is None or told != 0 or any(child.exit_codes)):
            faults.append(
                f"{reply.id} is said to have succeeded; its task was told {told}, Nomad has {child}"
            )
        if child is not None and reply.dispatched_job_id not in {"", child.job_id}:
            faults.append(f"{reply.id} is answered with {reply.dispatched_job_id}, its job is {child.job_id}")
        if reply.verdict == "failed" and reply.exit_code != told:
            faults.append(
                f"{reply.id} is said to have failed with {reply.exit_code}, its task was told {told}"
            )
    return faults


def _nothing_left(found: Evidence) -> list[str]:
    faults = []
    if found.pending:
        faults.append(f"{found.pending} entries are still pending")
    if found.lag:
        faults.append(f"{found.lag} entries were never read")
    faults += [
        f"the ledger has {message_id} as {state or 'nothing'}"
        for message_id, state in found.states.items()
        if state != "settled"
    ]
    return faults


async def all_is_well(world: Fleet, sent: Mapping[str, int | None]) -> None:
    """Fail with every violation."""
    faults = violations(await gather(world, sent))
    assert not faults, "\n".join(faults)
