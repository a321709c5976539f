"""What the policy makes of one request, in full: every rule with its answer, and every limit that holds.

Decides nothing itself: it asks `policy` what the worker asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.core.model import Request, Routing
from worker.core.policy import Cap, Policy, Rate, Retry, broken_rules
from worker.core.policy_file import StreamRule
from worker.errors import NotAllowed

RULES = (
    "jobs",
    "namespaces",
    "regions",
    "tenants",
    "meta_keys",
    "reply_to",
    "max_priority",
    "max_payload_bytes",
)
"""In the order in which they are looked at: the first that is broken is named in the reply."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One request under one policy."""

    allowed: bool
    error_code: str
    error_message: str
    """As in the reply; both empty when it is allowed."""
    table: str | None
    """Name of the table in `streams` that counts; None: there is none."""
    rules: Mapping[str, str]
    """Rule to `kept`, `broken` or `not set`."""
    meta: Mapping[str, str]
    """As dispatched."""
    meta_from: Mapping[str, str]
    """Meta key to `request`, `default` or `forced`."""
    priority: int | None
    """As dispatched; None: the job's own."""
    caps: tuple[Cap, ...]
    rates: tuple[Rate, ...]
    weight: int
    retry: Retry | None


def explain(policy: Policy, stream: str, request: Request, namespace: str, region: str) -> Explained:
    """What the policy makes of a request; the arguments are those of `Policy.admit`."""
    code = message = ""
    admitted = request
    try:
        admitted = policy.admit(stream, request, namespace, region)
    except NotAllowed as refusal:
        code, message = refusal.code, str(refusal)
    found = policy.rule(stream)
    table, rule = found or (None, StreamRule())
    broken = set(broken_rules(rule, request, namespace, region))
    routing = Routing(request.job, namespace, region, tenant=request.tenant)
    return Explained(
        allowed=not code,
        error_code=code,
        error_message=message,
        table=table,
        rules={name: _answer(rule, name, broken) for name in RULES},
        meta=admitted.meta,
        meta_from={key: _origin(rule, request, key) for key in admitted.meta},
        priority=admitted.priority,
        caps=policy.caps(stream, routing),
        rates=policy.rates(stream, routing),
        weight=policy.weight(request.tenant),
        retry=policy.retry(request.job),
    )


def _answer(rule: StreamRule, name: str, broken: set[str]) -> str:
    if getattr(rule, name) is None:
        return "not set"
    return "broken" if name in broken else "kept"


def _origin(rule: StreamRule, request: Request, key: str) -> str:
    if key in rule.forced_meta:
        return "forced"
    return "request" if key in request.meta else "default"
