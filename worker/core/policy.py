"""What the policy makes of a request: allowed or not, what is put into it, and which limits hold for it.

Knows nothing of files or of their form (`policy_file`). Without a policy everything is allowed that Nomad's
own rights allow, and nothing is limited or repeated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from worker.core.backoff import Backoff
from worker.core.model import Outcome, Request, Routing, Verdict
from worker.core.policy_file import (
    Limit,
    PolicyFile,
    RetryRule,
    StreamRule,
    TenantLimit,
    matches,
    most_specific,
    read_tables,
)
from worker.errors import NotAllowed, SettingsInvalid

ANY_STREAM = "*"
DEFAULT_WEIGHT = 1


class Cap(NamedTuple):
    """Most jobs in flight of one name, over all replicas."""

    scope: str
    """`total`, `job`, `tenant`, `namespace` or `stream`."""
    name: str
    """What shares the cap: a name, or the glob itself where the table says `shared`; empty for `total`."""
    most: int


class Rate(NamedTuple):
    """Most dispatches of one name a second, over all replicas: a token bucket."""

    scope: str
    name: str
    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how soon a run of a job is repeated."""

    glob: str
    """The rule's table in `retries`."""
    rule: RetryRule

    def again(self, outcome: Outcome, attempt: int) -> bool:
        """Whether the run that ended so, the attempt-th, is followed by another."""
        if attempt >= self.rule.max_attempts or outcome.verdict.value not in self.rule.on:
            return False
        codes = self.rule.exit_codes
        return outcome.verdict is not Verdict.FAILED or codes is None or outcome.exit_code in codes

    def delay_seconds(self, attempt: int, chance: float) -> float:
        """The wait after the attempt-th run; `chance` is uniform in [0, 1)."""
        backoff = Backoff(self.rule.backoff_seconds, self.rule.max_backoff_seconds)
        return backoff.delay(attempt, chance)


class Policy:
    """One policy in force. Cheap to ask: every answer about limits is looked up once per name."""

    def __init__(self, file: PolicyFile | None = None) -> None:
        self.file = file or PolicyFile()
        self._matched: dict[tuple[str, str], tuple[str, Limit] | None] = {}

    @classmethod
    def parse(cls, tables: Mapping[str, Any]) -> "Policy":
        """Read the tables of a policy file.

        Raises:
            SettingsInvalid: the message has one line per fault, each with its path.
        """
        file, faults = read_tables(tables)
        if file is None:
            message = "\n".join(f"the policy is not valid: {fault}" for fault in faults)
            raise SettingsInvalid(message)
        return cls(file)

    # Requests ---------------------------------------------------------------------------------------

    def rule(self, stream: str) -> tuple[str, StreamRule] | None:
        """The table for a request stream with its name; None when there is none, or no policy at all."""
        streams = self.file.streams or {}
        for name in (stream, ANY_STREAM):
            if name in streams:
                return name, streams[name]
        return None

    def admit(self, stream: str, request: Request, namespace: str, region: str) -> Request:
        """The request as it is dispatched: checked, with the policy's meta and priority filled in.

        Args:
            stream: short name of the stream it came in through.
            request: decoded.
            namespace: the namespace and
            region: the region it is going to, the worker's defaults filled in.

        Raises:
            NotAllowed: naming the rule, never the request's own values.
        """
        self.check(stream, request, namespace, region)
        found = self.rule(stream)
        if found is None:
            return request
        _, rule = found
        priority = rule.default_priority if request.priority is None else request.priority
        if not rule.default_meta and not rule.forced_meta:
            return request if priority == request.priority else replace(request, priority=priority)
        meta = {**rule.default_meta, **request.meta, **rule.forced_meta}
        return replace(request, meta=meta, priority=priority)

    def check(self, stream: str, request: Request, namespace: str, region: str) -> None:
        """Let a request pass, or not; see `admit`.

        Raises:
            NotAllowed: naming the rule, never the request's own values.
        """
        if self.file.streams is None:
            return
        found = self.rule(stream)
        if found is None:
            message = f"no policy for the stream {stream}"
            raise NotAllowed(message)
        for broken in broken_rules(found[1], request, namespace, region):
            message = f"not allowed by the rule {broken} of the stream {stream}"
            raise NotAllowed(message)

    # Limits -----------------------------------------------------------------------------------------

    def caps(self, stream: str, routing: Routing) -> tuple[Cap, ...]:
        """Every cap that a message counts against."""
        total = self.file.limits.cap
        caps = [] if total is None else [Cap("total", "", total)]
        for scope, name, limit in self._limits(stream, routing):
            if limit.cap is not None:
                caps.append(Cap(scope, name, limit.cap))
        return tuple(caps)

    def rates(self, stream: str, routing: Routing) -> tuple[Rate, ...]:
        """Every rate that a message's dispatch counts against."""
        rates = []
        for scope, name, limit in self._limits(stream, routing):
            if limit.per_second is not None:
                rates.append(Rate(scope, name, limit.per_second, limit.bucket))
        return tuple(rates)

    def weight(self, tenant: str) -> int:
        """A tenant's share of the turns while others wait too."""
        found = self._match("tenant", self.file.limits.tenants, tenant)
        limit = found[1] if found else None
        return (limit.weight if isinstance(limit, TenantLimit) else None) or DEFAULT_WEIGHT

    def retry(self, job: str) -> Retry | None:
        """The rule for repeating runs of a job; None: they are not repeated."""
        found = most_specific(self.file.retries, job)
        return Retry(*found) if found else None

    def _limits(self, stream: str, routing: Routing) -> Iterator[tuple[str, str, Limit]]:
        limits = self.file.limits
        scopes: tuple[tuple[str, Mapping[str, Limit], str], ...] = (
            ("stream", limits.streams, stream),
            ("job", limits.jobs, routing.job),
            ("namespace", limits.namespaces, routing.namespace),
            ("tenant", limits.tenants, routing.tenant),
        )
        for scope, tables, name in scopes:
            if found := self._match(scope, tables, name):
                glob, limit = found
                yield scope, glob if limit.shared else name, limit

    def _match(self, scope: str, tables: Mapping[str, Limit], name: str) -> tuple[str, Limit] | None:
        if not tables:
            return None
        try:
            return self._matched[scope, name]
        except KeyError:
            if len(self._matched) >= REMEMBERED:
                self._matched.clear()
            found = self._matched[scope, name] = most_specific(tables, name)
            return found


REMEMBERED = 10_000
"""Names whose table is remembered: tenants are the producers' to invent."""


def broken_rules(rule: StreamRule, request: Request, namespace: str, region: str) -> Iterator[str]:
    """The names of the rules that a request breaks."""
    if not _any(rule.jobs, request.job):
        yield "jobs"
    if not _any(rule.namespaces, namespace):
        yield "namespaces"
    if not _any(rule.regions, region):
        yield "regions"
    if not _any(rule.tenants, request.tenant):
        yield "tenants"
    if not all(_any(rule.meta_keys, key) for key in request.meta):
        yield "meta_keys"
    if request.reply_to and not _any(rule.reply_to, request.reply_to):
        yield "reply_to"
    if rule.max_priority is not None and (request.priority or 0) > rule.max_priority:
        yield "max_priority"
    if rule.max_payload_bytes is not None and len(request.payload) > rule.max_payload_bytes:
        yield "max_payload_bytes"


def _any(globs: list[str] | None, name: str) -> bool:
    return globs is None or any(matches(glob, name) for glob in globs)
