"""Whether a node satisfies a constraint or affinity of a job.

Knows nothing of capacity or ranking. Source: Nomad job specification, `constraint` and `affinity`.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from worker.dev.simulator.state import Node

_TARGET = re.compile(r"^\$\{([^}]+)\}$")
_VERSION_PART = re.compile(r"(>=|<=|!=|~>|=|>|<)?\s*v?(\d+(?:\.\d+)*)")


def describe(constraint: Mapping[str, Any]) -> str:
    """Return the words under which placement metrics count a failed constraint."""
    return f"{constraint.get('LTarget', '')} {constraint.get('Operand', '=')} {constraint.get('RTarget', '')}"


def escapes_class(constraint: Mapping[str, Any]) -> bool:
    """Whether the constraint looks at something that differs between nodes of one class."""
    return any("unique." in str(constraint.get(side, "")) for side in ("LTarget", "RTarget"))


def in_datacenters(node: Node, datacenters: list[str]) -> bool:
    """Whether the node is in one of the datacenters; names may be globs."""
    return any(fnmatchcase(node.datacenter, pattern) for pattern in datacenters)


def value_of(target: str, node: Node) -> str | None:
    """Return what a target such as `${attr.kernel.name}` stands for on a node; None if it has none."""
    match = _TARGET.match(target)
    if match is None:
        return target
    name = match[1]
    known = {
        "node.unique.id": node.id,
        "node.unique.name": node.name,
        "node.datacenter": node.datacenter,
        "node.class": node.node_class,
        "node.pool": node.pool,
        "node.region": "global",
    }
    if name in known:
        return known[name]
    kind, _, key = name.partition(".")
    table = {"attr": node.attributes, "meta": node.meta}.get(kind, {})
    return table.get(key)


def satisfied(constraint: Mapping[str, Any], node: Node) -> bool:
    """Whether the node passes one constraint."""
    left = value_of(constraint.get("LTarget", ""), node)
    right = value_of(constraint.get("RTarget", ""), node)
    operand = constraint.get("Operand") or "="
    if operand in {"!=", "not"}:
        return left != right
    if operand == "is_set":
        return left is not None
    if operand == "is_not_set":
        return left is None
    if left is None or right is None:
        return False
    return _compare(operand, left, right)


def _compare(operand: str, left: str, right: str) -> bool:
    match operand:
        case "=" | "==" | "is":
            return left == right
        case "<" | "<=" | ">" | ">=":
            return _ordered(operand, _number(left), _number(right))
        case "regexp":
            return re.search(right, left) is not None
        case "version" | "semver":
            return _version(left, right)
        case "set_contains" | "set_contains_all":
            return _set(right) <= _set(left)
        case "set_contains_any":
            return not _set(right).isdisjoint(_set(left))
        case _:
            # distinct_property and unknown operands do not filter here.
            return True


def _set(text: str) -> set[str]:
    return {part.strip() for part in text.split(",")}


def _number(text: str) -> Any:
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def _ordered(operand: str, left: Any, right: Any) -> bool:
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operand])


def _release(text: str) -> list[int]:
    found = re.match(r"v?(\d+(?:\.\d+)*)", text)
    parts = [int(part) for part in found[1].split(".")] if found else []
    return parts + [0] * (3 - len(parts))


def _version(left: str, right: str) -> bool:
    have = _release(left)
    for operand, text in _VERSION_PART.findall(right):
        want = _release(text)
        if operand == "~>":
            significant = max(text.count("."), 1)
            if have < want or have[:significant] != want[:significant]:
                return False
        elif operand in {"", "="}:
            if have != want:
                return False
        elif operand == "!=":
            if have == want:
                return False
        elif not _ordered(operand, have, want):
            return False
    return True
