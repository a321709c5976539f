"""What a request may ask for, beyond being well-formed: rules per request stream, from a TOML file's tables.

Knows nothing of files. Without rules everything is allowed that Nomad's own rights allow.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from worker.core.model import Request
from worker.errors import NotAllowed, SettingsInvalid

ANY_STREAM = "*"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may come in through one stream. A list that is absent allows everything, an empty one nothing."""

    jobs: list[str] | None = None
    """Globs; `*` also matches `/`."""
    namespaces: list[str] | None = None
    regions: list[str] | None = None
    meta_keys: list[str] | None = None
    reply_to: list[str] | None = None
    """Names of reply streams; the shared one is always allowed."""
    max_priority: int | None = None
    max_payload_bytes: int | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    streams: dict[str, Rule] = {}


class Policy:
    """The rules of all streams; the table `*` is for streams without one of their own."""

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = rules

    @classmethod
    def parse(cls, tables: Mapping[str, Any]) -> "Policy":
        """Read the tables of a policy file, `[streams.<name>]` each.

        Raises:
            SettingsInvalid: an unknown key or a value of the wrong type; the message names it.
        """
        try:
            return cls(msgspec.convert(tables, _File).streams)
        except msgspec.ValidationError as error:
            message = f"the policy is not valid: {error}"
            raise SettingsInvalid(message) from error

    def check(self, stream: str, request: Request, namespace: str, region: str) -> None:
        """Let a request pass, or not.

        Args:
            stream: short name of the stream it came in through.
            request: decoded.
            namespace: the namespace and
            region: the region it is going to, the worker's defaults filled in.

        Raises:
            NotAllowed: naming the rule, never the request's own values.
        """
        if self._rules is None:
            return
        rule = self._rules.get(stream) or self._rules.get(ANY_STREAM)
        if rule is None:
            message = f"no policy for the stream {stream}"
            raise NotAllowed(message)
        for broken in _broken(rule, request, namespace, region):
            message = f"not allowed by the rule {broken} of the stream {stream}"
            raise NotAllowed(message)


def _broken(rule: Rule, request: Request, namespace: str, region: str) -> Iterator[str]:
    if rule.jobs is not None and not any(fnmatchcase(request.job, glob) for glob in rule.jobs):
        yield "jobs"
    if rule.namespaces is not None and namespace not in rule.namespaces:
        yield "namespaces"
    if rule.regions is not None and region not in rule.regions:
        yield "regions"
    if rule.meta_keys is not None and not set(request.meta) <= set(rule.meta_keys):
        yield "meta_keys"
    if rule.reply_to is not None and request.reply_to and request.reply_to not in rule.reply_to:
        yield "reply_to"
    if rule.max_priority is not None and (request.priority or 0) > rule.max_priority:
        yield "max_priority"
    if rule.max_payload_bytes is not None and len(request.payload) > rule.max_payload_bytes:
        yield "max_payload_bytes"
