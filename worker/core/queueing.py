"""The limits of a policy as the queue's script reads them, and which slots a message holds by them.

Knows nothing of Redis but that its scripts are Lua: they get globs as Lua patterns.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from worker.core.policy import Cap, Policy
from worker.core.policy_file import Limit, Limits, TenantLimit, literal_characters

_ASCII = [chr(code) for code in range(32, 127)]
"""Those that a name may hold."""
_ONE = "\1"
"""In patterns, any character. Names are UTF-8 and Lua counts in bytes: the script puts in what matches."""
_LEAD, _REST = "\2", "\3"
"""Likewise, in a set: the first byte of a character beyond ASCII; after the set: the bytes that follow it."""
_BEYOND = "\u2603"
"""Stands for every character beyond ASCII: a set of a glob that lists such ones is matched by none."""


def limited(policy: Policy) -> bool:
    """Whether the policy limits or shares anything, so that messages have to queue."""
    return policy.file.limits != Limits()


def encode_limits(policy: Policy) -> bytes:
    """The limits as MessagePack: by scope, exact names, and globs with the most specific one first."""
    limits = policy.file.limits
    scopes: dict[str, Mapping[str, Limit]] = {
        "stream": limits.streams,
        "job": limits.jobs,
        "namespace": limits.namespaces,
        "tenant": limits.tenants,
    }
    encoded: dict[str, Any] = {scope: _tables(tables) for scope, tables in scopes.items() if tables}
    if limits.cap is not None:
        encoded["total"] = {"names": {"": {"cap": limits.cap}}, "globs": []}
    return msgspec.msgpack.encode(encoded)


def slots_text(caps: Iterable[Cap]) -> str:
    """The slots of a message under these caps, as the ledger keeps them."""
    return "\n".join(f"{cap.scope}\t{cap.name}" for cap in caps)


def lua_pattern(glob: str) -> str:
    """A Lua pattern that matches the names which `fnmatchcase` finds to match the glob.

    Sets of characters are exact for ASCII.
    """
    pattern, at = "^", 0
    while at < len(glob):
        character, at = glob[at], at + 1
        if character == "*":
            pattern += ".*"
        elif character == "?":
            pattern += _ONE
        elif character == "[" and (end := _set_end(glob, at)):
            pattern += _lua_set(glob[at - 1 : end])
            at = end
        else:
            pattern += _literal(character)
    return pattern + "$"


def _tables(tables: Mapping[str, Limit]) -> dict[str, Any]:
    globs = sorted(tables, key=lambda glob: (literal_characters(glob), glob), reverse=True)
    return {
        "names": {name: _limit(limit) for name, limit in tables.items()},
        "globs": [
            {"glob": glob, "pattern": lua_pattern(glob), "limit": _limit(tables[glob])} for glob in globs
        ],
    }


def _limit(limit: Limit) -> dict[str, Any]:
    weight = limit.weight if isinstance(limit, TenantLimit) else None
    told = {
        "cap": limit.cap,
        "per_second": limit.per_second,
        "burst": limit.bucket if limit.per_second is not None else None,
        "shared": limit.shared or None,
        "weight": weight,
    }
    return {name: value for name, value in told.items() if value is not None}


def _set_end(glob: str, at: int) -> int:
    """Where a set that began before `at` ends, as `fnmatch` sees it; 0: it is no set."""
    end = at
    if glob[end : end + 1] == "!":
        end += 1
    if glob[end : end + 1] == "]":
        end += 1
    return glob.find("]", end) + 1


def _lua_set(glob: str) -> str:
    members = "".join(_literal(one) for one in _ASCII if fnmatchcase(one, glob))
    if fnmatchcase(_BEYOND, glob):
        return f"[{members}{_LEAD}]{_REST}"
    # No name holds the character 0: a set that nothing matches.
    return f"[{members or '%z'}]"


def _literal(character: str) -> str:
    return character if character.isalnum() or not character.isascii() else f"%{character}"
