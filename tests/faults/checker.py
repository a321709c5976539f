"""What must be true after any fault, proved from the data in Redis and from Nomad's own record.

Reads no logs, and believes no worker: whatever a worker says of itself is what is being checked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tests.processes.fleet import Fleet
from worker.core.model import MessageKey
from worker.core.reply import Reply


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a task, as the node that ran it saw it."""

    exit_code: int | None
    """None: it never ended."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Child:
    """One job that Nomad made, and what its tasks truly did."""

    job_id: str
    token: str
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What a request asked for: what its task was told to do."""

    exit_code: int | None
    """None: it can never be dispatched."""
    seconds: float = 0.0
    """How long its task takes, if nobody ends it."""
    verdicts: frozenset[str] = frozenset()
    """What it may come to; empty: nothing is said about that."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the judgement rests on."""

    sent: Mapping[str, Told]
    """By message ID."""
    replies: Sequence[Reply]
    children: Sequence[Child]
    pending: int
    lag: int
    states: Mapping[str, str]
    """Message ID to the state in the ledger; empty: there is none."""
    left: Mapping[str, int] = field(default_factory=dict)
    """What else is still there in Redis although everything is settled, by name."""


async def gather(world: Fleet, sent: Mapping[str, Told]) -> Evidence:
    """Read Redis and Nomad's record."""
    groups = [group for group in await world.redis.xinfo_groups(world.stream) if group["name"] == b"workers"]
    delivered = groups[0]["last-delivered-id"] if groups else b"0-0"
    behind = await world.redis.xrange(world.stream, b"(" + delivered, "+")
    states: list[bytes | None] = []
    for message_ids in batched(sent, 1_000):
        pipeline = world.redis.pipeline(transaction=False)
        for message_id in message_ids:
            pipeline.hget(world.keys.message(MessageKey("requests", message_id)), "state")
        states += await pipeline.execute()
    return Evidence(
        sent=sent,
        replies=await world.replies(),
        children=children(world),
        pending=await world.pending(),
        lag=len(behind),
        states={
            message_id: state.decode() if state else ""
            for message_id, state in zip(sent, states, strict=True)
        },
        left={"open orders to cancel": int(await world.redis.zcard(world.keys.cancels))},
    )


def children(world: Fleet) -> list[Child]:
    """Every job that Nomad made, purged and collected ones too, with what its nodes truly ran."""
    runs: dict[str, list[Run]] = {}
    for run in world.nomad.engine.clients.runs:
        ended_at = run["ended_at"]
        seconds = ended_at - run["started_at"] if ended_at is not None else 0.0
        runs.setdefault(run["job_id"], []).append(Run(run["exit_code"], seconds))
    return [
        Child(entry["job_id"], entry["token"], tuple(runs.get(entry["job_id"], ())))
        for entry in world.dispatched()
    ]


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """In lists of at most `size`."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


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
    faults += [
        f"a job for {message_id}, which can never be dispatched"
        for message_id, told in found.sent.items()
        if told.exit_code is None and message_id in tokens
    ]
    return faults


CLOCK_SECONDS = 0.05
"""By which a timer may ring too early, and times are rounded."""


def _no_false_success(found: Evidence) -> list[str]:
    faults = []
    by_token = {child.token: child for child in found.children}
    for reply in found.replies:
        told = found.sent.get(reply.id)
        if not reply.final or told is None:
            continue
        # A run after the first has the token `<message ID>/<its number>`.
        token = f"{reply.id}/{reply.attempt}" if reply.attempt > 1 else reply.id
        child = by_token.get(token)
        if reply.verdict == "succeeded" and not (child and _truly_done(child, told)):
            faults.append(f"{reply.id} is said to have succeeded; it asked for {told}, Nomad has {child}")
        if child is not None and reply.dispatched_job_id not in {"", child.job_id}:
            faults.append(f"{reply.id} is answered with {reply.dispatched_job_id}, its job is {child.job_id}")
        if child is None and reply.dispatched_job_id:
            faults.append(f"{reply.id} is answered with {reply.dispatched_job_id}, which Nomad never made")
        if reply.verdict == "failed" and reply.exit_code != told.exit_code:
            faults.append(f"{reply.id} is said to have failed with {reply.exit_code}; it asked for {told}")
        if told.verdicts and reply.verdict not in told.verdicts:
            faults.append(f"{reply.id} came to {reply.verdict}; it asked for {told}")
    return faults


def _truly_done(child: Child, told: Told) -> bool:
    """Whether a task ended by itself, after its whole time, with exit code 0."""
    return told.exit_code == 0 and any(
        run.exit_code == 0 and run.seconds >= told.seconds - CLOCK_SECONDS for run in child.runs
    )


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
    faults += [f"{number} {name}" for name, number in found.left.items() if number]
    return faults


async def all_is_well(world: Fleet, sent: Mapping[str, int | None]) -> None:
    """Fail with every violation.

    Args:
        sent: message ID to the exit code its task was told to end with; None: it can never be dispatched.
    """
    told = {message_id: Told(exit_code) for message_id, exit_code in sent.items()}
    faults = violations(await gather(world, told))
    assert not faults, "\n".join(faults)
