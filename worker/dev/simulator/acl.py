"""Tokens, policies, and what each operation needs: capabilities per namespace, checked before any lookup.

Knows nothing of HTTP. Source: Nomad ACL policy specification, and answers recorded from a real server.
"""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from worker.dev.simulator.records import go_time

_UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_BLOCK = re.compile(r'namespace\s+"([^"]+)"\s*\{(.*?)\}', re.DOTALL)
_CAPABILITIES = re.compile(r"capabilities\s*=\s*\[(.*?)\]", re.DOTALL)
_LEVEL = re.compile(r'policy\s*=\s*"(\w+)"')
_READ = {"list-jobs", "parse-job", "read-job", "list-scaling-policies"}
_WRITE = {"submit-job", "dispatch-job", "read-logs", "read-fs", "alloc-exec", "alloc-lifecycle", "scale-job"}
_LEVELS = {
    "deny": frozenset[str](),
    "read": frozenset(_READ),
    "write": frozenset(_READ | _WRITE),
}
_STREAM_TOPICS = {"Job", "Evaluation", "Allocation", "Deployment", "Service"}


class Denied(Exception):
    """The token does not allow this; the answer is 403 `Permission denied`."""


class UnknownSignature(Exception):
    """The token is no UUID: some endpoints take it for a workload identity and fail to read it."""


@dataclass(slots=True, eq=False)
class Token:
    """One ACL token. `expires` is in nanoseconds since the epoch; 0: never."""

    accessor_id: str
    secret_id: str
    name: str
    management: bool = False
    policies: tuple[str, ...] = ()
    created: int = 0
    expires: int = 0
    index: int = 0

    def view(self) -> dict[str, Any]:
        """Return the token as the API shows it."""
        return {
            "ExpirationTTL": "",
            "AccessorID": self.accessor_id,
            "SecretID": self.secret_id,
            "Name": self.name,
            "Type": "management" if self.management else "client",
            "Policies": list(self.policies) or None,
            "Roles": None,
            "Global": self.management,
            "Hash": "BUJ3BerTfrqFVm1P+vZr1gz9ubOkd+JAvYjNAJyaU9Y=",
            "CreateTime": go_time(self.created),
            "ExpirationTime": go_time(self.expires) if self.expires else None,
            "CreateIndex": self.index,
            "ModifyIndex": self.index,
        }


ANONYMOUS = Token("anonymous", "anonymous", "Anonymous Token", policies=("anonymous",))
DISABLED = Token("acls-disabled", "acls-disabled", "ACLs disabled token", management=True)


def read_rules(rules: str | Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Return capabilities by namespace (globs allowed) from Nomad's HCL rules or from a mapping."""
    if isinstance(rules, Mapping):
        return {namespace: frozenset(names) for namespace, names in rules.items()}
    found: dict[str, frozenset[str]] = {}
    for namespace, body in _BLOCK.findall(rules):
        granted: set[str] = set()
        for level in _LEVEL.findall(body):
            granted |= _LEVELS.get(level, frozenset())
        for names in _CAPABILITIES.findall(body):
            granted |= set(re.findall(r'"([\w-]+)"', names))
        found[namespace] = frozenset(granted)
    return found


@dataclass
class Acl:
    """All tokens and policies. Disabled: everything is allowed."""

    enabled: bool = False
    tokens: dict[str, Token] = field(default_factory=dict)
    policies: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    bootstrapped: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, now: int) -> "Acl":
        """Read a configuration.

        Args:
            config: `bootstrap_token` (a secret ID), `policies` (name to HCL text or to
                `{namespace: [capability, ...]}`), `tokens` (a list of `{"secret", "policies", "name",
                "ttl_seconds"}`). None: ACLs are off.
            now: nanoseconds since the epoch.
        """
        acl = cls(enabled=config is not None)
        for name, rules in (config or {}).get("policies", {}).items():
            acl.policies[name] = read_rules(rules)
        if secret := (config or {}).get("bootstrap_token"):
            acl.bootstrap(1, now, secret)
        for entry in (config or {}).get("tokens", ()):
            ttl = int(entry.get("ttl_seconds", 0) * 1e9)
            name, secret = entry.get("name", ""), entry.get("secret")
            acl.create(entry.get("policies", ()), now, secret=secret, ttl=ttl, name=name)
        return acl

    def bootstrap(self, index: int, now: int, secret: str | None = None) -> Token:
        """Make the first management token."""
        token = Token(_uuid(), secret or _uuid(), "Bootstrap Token", management=True)
        token.created, token.index = now, index
        self.tokens[token.secret_id] = token
        self.bootstrapped = index
        return token

    def create(
        self,
        policies: Sequence[str],
        now: int,
        *,
        secret: str | None = None,
        ttl: int = 0,
        name: str = "",
        management: bool = False,
    ) -> Token:
        """Make a token; `ttl` in nanoseconds, 0: it never expires."""
        expires = now + ttl if ttl else 0
        token = Token(_uuid(), secret or _uuid(), name, management, tuple(policies), now, expires, 1)
        self.tokens[token.secret_id] = token
        return token

    def revoke(self, accessor_or_secret: str) -> bool:
        """Delete a token; return whether there was one."""
        for token in tuple(self.tokens.values()):
            if accessor_or_secret in {token.accessor_id, token.secret_id}:
                del self.tokens[token.secret_id]
                return True
        return False

    def resolve(self, secret: str, now: int) -> Token:
        """Return the token of a request; without a secret the anonymous one.

        Raises:
            UnknownSignature: the secret is no UUID.
            Denied: unknown or expired.
        """
        if not self.enabled:
            return DISABLED
        if not secret:
            return ANONYMOUS
        if not _UUID.match(secret):
            raise UnknownSignature
        token = self.tokens.get(secret)
        if token is None or (token.expires and token.expires <= now):
            raise Denied
        return token

    def capabilities(self, token: Token, namespace: str) -> frozenset[str]:
        """Return what a token may do in a namespace."""
        granted: set[str] = set()
        for name in token.policies:
            for pattern, names in self.policies.get(name, {}).items():
                if fnmatchcase(namespace, pattern):
                    granted |= names
        return frozenset(granted)

    def allows(self, token: Token, namespace: str, *any_of: str) -> bool:
        """Whether a token has one of the capabilities; a management token has all."""
        return token.management or not self.capabilities(token, namespace).isdisjoint(any_of)

    def require(self, token: Token, namespace: str, *any_of: str) -> None:
        """Check a capability; without any, a management token is needed.

        Raises:
            Denied: the token lacks it.
        """
        if not self.allows(token, namespace, *any_of):
            raise Denied

    def readable(self, token: Token, namespaces: Iterable[str], capability: str) -> set[str]:
        """Return the namespaces a token may see; for reads with namespace `*`.

        Raises:
            Denied: none.
        """
        allowed = {name for name in namespaces if self.allows(token, name, capability)}
        if not allowed:
            raise Denied
        return allowed

    def may_stream(
        self, token: Token, topics: Iterable[str], namespace: str, namespaces: Iterable[str]
    ) -> bool:
        """Whether an event stream delivers anything: read-job in every namespace it covers."""
        if token.management:
            return True
        if not set(topics) <= _STREAM_TOPICS:
            return False
        covered = list(namespaces) if namespace == "*" else [namespace]
        return all(self.allows(token, name, "read-job") for name in covered)


def _uuid() -> str:
    digits = secrets.token_hex(16)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
