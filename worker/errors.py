"""Every failure the worker names: what happened, its public code, and what comes next.

Knows nothing of Redis, Nomad or HTTP; adapters translate their outside's failures into these.
"""

from enum import Enum
from typing import ClassVar


class Then(Enum):
    """What the pipeline does after an error. It reads this, never the message text."""

    RETRY = "retry"
    """It may pass: try again later, with backoff."""
    DEAD_LETTER = "dead_letter"
    """Waiting will not help this message: final `rejected` reply, dead letter, acknowledge."""
    PAUSE = "pause"
    """Nothing is wrong with the message: intake pauses until an operator has acted, then it is retried."""
    LET_GO = "let_go"
    """Another worker owns the message now: drop it here, touch nothing."""
    STOP = "stop"
    """This process cannot work as it is configured: it ends with an error."""


class WorkerError(Exception):
    """Base of all named failures.

    Attributes:
        code: public and stable; replies, logs and metric labels carry it. Added, never renamed.
        then: what the pipeline does next.
    """

    code: ClassVar[str] = "worker.error"
    then: ClassVar[Then] = Then.RETRY


# Requests -----------------------------------------------------------------------------------------


class RequestRejected(WorkerError):
    """A request entry that can never be dispatched as it is."""

    code = "request.invalid"
    then = Then.DEAD_LETTER


class VersionUnknown(RequestRejected):
    """The entry's `v` is not a version this worker reads."""

    code = "request.version_unknown"


class FieldMissing(RequestRejected):
    """A required field is absent or empty."""

    code = "request.field_missing"


class FieldInvalid(RequestRejected):
    """A field does not have the form the contract gives it."""

    code = "request.field_invalid"


class MetaInvalid(RequestRejected):
    """`meta` is not one JSON object of strings."""

    code = "request.meta_invalid"


class MetaTooLarge(RequestRejected):
    """`meta` exceeds the worker's limit. Nomad has none, and repeats meta in every Job event."""

    code = "request.meta_too_large"


class PayloadTooLarge(RequestRejected):
    """The payload exceeds Nomad's 16,384 bytes."""

    code = "request.payload_too_large"


class ReplyToInvalid(RequestRejected):
    """`reply_to` is not a name under the worker's own reply prefix."""

    code = "request.reply_to_invalid"


class PlaceNotConfigured(RequestRejected):
    """The request names a namespace or region this worker is not configured to serve."""

    code = "request.place_not_configured"


class NotAllowed(RequestRejected):
    """The policy does not let this request through; the message names the rule."""

    code = "request.not_allowed"


class PayloadLost(RequestRejected):
    """The entry was trimmed or deleted before it could be dispatched."""

    code = "request.payload_lost"


class PoisonMessage(RequestRejected):
    """Several workers died while holding this message before it was dispatched."""

    code = "request.poison"


# Nomad's answers ----------------------------------------------------------------------------------


class NomadRefused(WorkerError):
    """Nomad refused the dispatch for good: the same request would be refused again."""

    code = "nomad.refused"
    then = Then.DEAD_LETTER


class JobUnknown(NomadRefused):
    """Nomad has no parameterized job of this name in this namespace."""

    code = "nomad.job_unknown"


class JobNotParameterized(NomadRefused):
    """The job exists but is not parameterized."""

    code = "nomad.job_not_parameterized"


class JobStopped(NomadRefused):
    """The parameterized job is stopped."""

    code = "nomad.job_stopped"


class PayloadForbidden(NomadRefused):
    """The job forbids a payload and one was given."""

    code = "nomad.payload_forbidden"


class PayloadRequired(NomadRefused):
    """The job requires a payload and none was given."""

    code = "nomad.payload_required"


class PayloadOversize(NomadRefused):
    """Nomad found the payload larger than it accepts."""

    code = "nomad.payload_too_large"


class MetaUnpermitted(NomadRefused):
    """Meta keys were given that the job does not allow."""

    code = "nomad.meta_unpermitted"


class MetaMissing(NomadRefused):
    """Meta keys that the job requires were not given."""

    code = "nomad.meta_missing"


class PriorityOutOfRange(NomadRefused):
    """The priority is outside what the servers allow."""

    code = "nomad.priority_out_of_range"


class RegionUnknown(NomadRefused):
    """The servers know no path to the region, and it never answered."""

    code = "nomad.region_unknown"


class NomadDenied(WorkerError):
    """403: the token is unknown, expired, or lacks a capability. No message is at fault."""

    code = "nomad.permission_denied"
    then = Then.PAUSE


class NomadUnavailable(WorkerError):
    """No answer, or one that may pass. Safe to repeat with the same idempotency token.

    Attributes:
        maybe_applied: Nomad may have acted on the request although no answer came back.
        retry_after_seconds: how long Nomad asked to wait, where it did.
    """

    code = "nomad.unavailable"
    then = Then.RETRY

    def __init__(
        self, message: str, *, maybe_applied: bool = True, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied
        self.retry_after_seconds = retry_after_seconds


class NomadNoLeader(NomadUnavailable):
    """The cluster has no leader, or the leader was lost while it answered."""

    code = "nomad.no_leader"


class RegionUnreachable(NomadUnavailable):
    """The servers know no path to a region that has answered before: the link to it is down."""

    code = "nomad.region_unreachable"


class NomadBusy(NomadUnavailable):
    """429: too many connections from this address."""

    code = "nomad.busy"


class NomadTimeout(NomadUnavailable):
    """The request was sent and no answer came in time."""

    code = "nomad.timeout"


class ChildUnknown(WorkerError):
    """404: Nomad does not have this dispatched job (any more)."""

    code = "nomad.child_unknown"
    then = Then.DEAD_LETTER


class FeedRefused(WorkerError):
    """The event stream answered 200 and then stayed silent: how Nomad refuses one."""

    code = "nomad.event_stream_refused"
    then = Then.RETRY


class FeedLost(WorkerError):
    """The event stream ended, broke, or missed its heartbeats."""

    code = "nomad.event_stream_lost"
    then = Then.RETRY


# Redis and the ledger -----------------------------------------------------------------------------


class RedisUnavailable(WorkerError):
    """Redis did not answer, or answered that it cannot serve now. Scripts are safe to repeat."""

    code = "redis.unavailable"
    then = Then.RETRY


class RedisFull(RedisUnavailable):
    """Redis is at maxmemory and refuses writes."""

    code = "redis.out_of_memory"


class RedisReadOnly(RedisUnavailable):
    """The server is a replica, or lacks the replicas it needs to accept writes."""

    code = "redis.not_writable"


class RedisUnconfirmed(RedisUnavailable):
    """Written, but not confirmed as durable in time (`WORKER_DURABILITY`)."""

    code = "redis.not_confirmed"


class GroupMissing(RedisUnavailable):
    """The stream or its consumer group does not exist (any more)."""

    code = "redis.group_missing"


class RedisDenied(WorkerError):
    """The Redis user may not run a command the worker needs, or may not touch its keys."""

    code = "redis.denied"
    then = Then.STOP


class RedisUnsuitable(WorkerError):
    """The server is too old, or configured so that it would lose messages."""

    code = "redis.unsuitable"
    then = Then.STOP


class Fenced(WorkerError):
    """The ledger names another owner, or a newer fencing token: this worker must let go."""

    code = "ledger.fenced"
    then = Then.LET_GO


class RecordGone(WorkerError):
    """The ledger has no entry for a message this worker holds: Redis lost data, or evicted the key."""

    code = "ledger.record_gone"
    then = Then.LET_GO


class DuplicateChild(WorkerError):
    """Two dispatched jobs exist for one attempt; the ledger keeps the first, this one must be stopped.

    Attributes:
        kept_job_id: the dispatched job that the ledger names.
    """

    code = "ledger.duplicate_child"
    then = Then.RETRY

    def __init__(self, message: str, *, kept_job_id: str) -> None:
        super().__init__(message)
        self.kept_job_id = kept_job_id


class RecordUnreadable(WorkerError):
    """The ledger entry was written by a newer version. It is left alone for a worker that reads it."""

    code = "ledger.version_unknown"
    then = Then.LET_GO


class IllegalTransition(WorkerError):
    """A fact that cannot be true in the record's phase. The ledger keeps the old record."""

    code = "ledger.illegal_transition"
    then = Then.LET_GO


class LeaseLost(WorkerError):
    """This worker's lease may have expired: it must not start anything until it is renewed."""

    code = "ledger.lease_lost"
    then = Then.RETRY


# The process --------------------------------------------------------------------------------------


class SettingsInvalid(WorkerError):
    """One or more settings are wrong; the message lists every one."""

    code = "settings.invalid"
    then = Then.STOP


class LoopStalled(WorkerError):
    """A supervised loop did not come round in time."""

    code = "runtime.loop_stalled"
    then = Then.STOP
