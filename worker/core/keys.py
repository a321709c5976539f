"""The names of all keys in Redis. Every key carries the prefix's hash tag, so one script may touch all.

Knows nothing of what is stored under them.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

from worker.core.model import MessageKey

SCOPES = ("total", "stream", "job", "namespace", "tenant")
"""What a cap may hold for, in the order in which scripts are given their keys."""

_REPLY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH_TAG = re.compile(r"\{[^{}]+\}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names below one prefix, e.g. `{dispatch}`."""

    prefix: str

    @property
    def one_slot(self) -> bool:
        """Whether the prefix holds exactly one hash tag, so that Redis Cluster keeps its keys together."""
        return len(_HASH_TAG.findall(self.prefix)) == 1

    @property
    def replies(self) -> str:
        """The shared reply stream."""
        return f"{self.prefix}:replies"

    @property
    def dead(self) -> str:
        """The dead-letter stream."""
        return f"{self.prefix}:dead"

    @property
    def dead_notice(self) -> str:
        """String: which dead letters are going to be dropped for their age, and since when that is told."""
        return f"{self.prefix}:dead:notice"

    @property
    def workers(self) -> str:
        """Sorted set: worker name to lease deadline, Unix milliseconds on Redis's clock."""
        return f"{self.prefix}:workers"

    @property
    def cancels(self) -> str:
        """Sorted set: ledger keys of messages to be cancelled, by time of the order, Unix milliseconds."""
        return f"{self.prefix}:cancels"

    @property
    def control(self) -> str:
        """Stream: wakes the workers up for an order in `cancels`; trimmed to its newest entries."""
        return f"{self.prefix}:control"

    def stream(self, name: str) -> str:
        """A request stream."""
        return f"{self.prefix}:{name}"

    def message(self, key: MessageKey) -> str:
        """The ledger hash of one message."""
        return f"{self.prefix}:message:{key}"

    def message_of(self, ledger_key: str) -> MessageKey:
        """The message of a ledger hash: the inverse of `message`."""
        stream, _, message_id = ledger_key.removeprefix(f"{self.prefix}:message:").rpartition(":")
        return MessageKey(stream, message_id)

    def worker(self, name: str) -> str:
        """Hash: what one worker tells people about itself."""
        return f"{self.prefix}:worker:{name}"

    def floor(self, stream: str) -> str:
        """String: the entry ID up to which everything in a stream is done."""
        return f"{self.prefix}:floor:{stream}"

    def delayed(self, stream: str) -> str:
        """Sorted set: IDs of messages that may not go yet, by when they may, Unix milliseconds."""
        return f"{self.prefix}:delayed:{stream}"

    def queue(self, stream: str) -> str:
        """Sorted set: IDs of messages that wait for their turn, by since when, Unix milliseconds."""
        return f"{self.prefix}:queue:{stream}"

    def flows(self, stream: str) -> str:
        """Sorted set of equal scores: the same messages in the order of tenant, job, namespace and ID."""
        return f"{self.prefix}:flows:{stream}"

    def turns(self, stream: str) -> str:
        """Sorted set: tenants with a message in the queue, by their virtual time."""
        return f"{self.prefix}:turns:{stream}"

    def served(self, stream: str) -> str:
        """Sorted set: tenants without one whose virtual time is ahead of the others'."""
        return f"{self.prefix}:served:{stream}"

    def deadlines(self, stream: str) -> str:
        """Sorted set: IDs of waiting messages that end undispatched, by when, Unix milliseconds."""
        return f"{self.prefix}:deadlines:{stream}"

    def waiting(self, stream: str) -> tuple[str, ...]:
        """All that is kept of a stream's waiting messages besides their ledger entries."""
        return (
            *(self.delayed(stream), self.queue(stream), self.flows(stream)),
            *(self.turns(stream), self.served(stream), self.deadlines(stream)),
        )

    def cap(self, scope: str) -> str:
        """Sorted set of equal scores: the slots taken of one scope's caps, `<name> TAB <ledger key>` each."""
        return f"{self.prefix}:cap:{scope}"

    @property
    def caps(self) -> tuple[str, ...]:
        """Those of all scopes."""
        return tuple(self.cap(scope) for scope in SCOPES)

    @property
    def rates(self) -> str:
        """Sorted set: `<scope> TAB <name>` of a rate, by the time at which its credit is whole again."""
        return f"{self.prefix}:rates"

    def idempotency(self, producer: str, key: str) -> str:
        """String: the message that a producer's idempotency key first gave, as `<stream>:<id>:<nonce>`."""
        return f"{self.prefix}:idempotency:{producer}:{key}"

    def idempotency_in(self, namespace: str, job: str, key: str) -> str:
        """The same within a namespace and a job, as Nomad matches its own tokens."""
        # Quoted, none can hold the "/" and ":" between them, nor braces: no two scopes share a name.
        scope, name = "/".join(quote(part, safe="") for part in (namespace, job)), quote(key, safe="")
        return self.idempotency(scope, name)

    def payload(self, digest: str) -> str:
        """String: a payload too large for Nomad, by its SHA-256 in hexadecimal; expires."""
        return f"{self.prefix}:payload:{digest}"

    def reply_stream(self, reply_to: str) -> str:
        """The reply stream of a name that `reply_name` has accepted; empty: the shared one."""
        return f"{self.replies}:{reply_to}" if reply_to else self.replies

    def reply_name(self, reply_to: str) -> str | None:
        """The name in a request's `reply_to`, given bare or as the whole key; None when not allowed.

        A free choice of key would let a producer write anywhere, the worker's own keys included.
        """
        name = reply_to.removeprefix(f"{self.replies}:")
        if reply_to in {"", self.replies}:
            return ""
        return name if _REPLY_NAME.fullmatch(name) else None
