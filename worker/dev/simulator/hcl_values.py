"""Values of HCL expressions: conversions, operators and the functions this subset has.

Knows nothing of syntax or of Nomad.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any


class HclError(Exception):
    """A mistake at a line of an HCL text, or something this subset of the language lacks."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


def as_text(value: Any) -> str:
    """Return a value as a template shows it.

    Raises:
        TypeError: null, a list or an object has no text.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case None:
            msg = "a null value is not allowed here"
        case _:
            msg = f"a string is required, not a {'list' if isinstance(value, list) else 'map'}"
    raise TypeError(msg)


def as_number(value: Any) -> int | float:
    """Return a number, also from its text.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if math.isfinite(number):
            return _whole(number)
    msg = f"a number is required, not {value!r}"
    raise TypeError(msg)


def as_bool(value: Any) -> bool:
    """Return a truth value, also from "true" and "false".

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool):
        return value
    if value in {"true", "false"}:
        return bool(value == "true")
    msg = f"true or false is required, not {value!r}"
    raise TypeError(msg)


def unary(sign: str, value: Any) -> Any:
    """Apply "-" or "!"."""
    return -as_number(value) if sign == "-" else not as_bool(value)


def binary(sign: str, left: Any, right: Any) -> Any:
    """Apply an operator.

    Raises:
        TypeError: an operand is of the wrong type.
        ZeroDivisionError: division by zero.
    """
    if sign in {"==", "!="}:
        return (left == right and isinstance(left, bool) == isinstance(right, bool)) == (sign == "==")
    if sign in {"&&", "||"}:
        both = as_bool(left), as_bool(right)
        return all(both) if sign == "&&" else any(both)
    result = _ARITHMETIC[sign](as_number(left), as_number(right))
    return result if isinstance(result, bool) else _whole(result)


_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _format(template: str, *values: Any) -> str:
    remaining = list(values)

    def replace(match: re.Match[str]) -> str:
        verb = match.group()
        if verb == "%%":
            return "%"
        value = remaining.pop(0)
        if verb.endswith(("s", "v", "q")):
            text = as_text(value) if not isinstance(value, list | dict) else _json(value)
            return json.dumps(text) if verb.endswith("q") else (verb[:-1] + "s") % text
        number = as_number(value)
        return verb % (int(number) if verb.endswith("d") else number)

    return re.sub(r"%(?:%|[-+0]*\d*(?:\.\d+)?[svqdfxX])", replace, template)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _concat(*lists: Sequence[Any]) -> list[Any]:
    return [item for part in lists for item in part]


def _merge(*maps: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for part in maps for name, value in part.items()}


def _coalesce(*values: Any) -> Any:
    return next((value for value in values if value is not None and value != ""), None)


FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "coalesce": _coalesce,
        "concat": _concat,
        "format": _format,
        "join": lambda separator, items: separator.join(as_text(item) for item in items),
        "jsonencode": _json,
        "keys": sorted,
        "length": len,
        "lookup": lambda items, key, *default: items.get(key, *default),
        "lower": lambda text: as_text(text).lower(),
        "max": lambda *numbers: max(as_number(number) for number in numbers),
        "merge": _merge,
        "min": lambda *numbers: min(as_number(number) for number in numbers),
        "replace": lambda text, old, new: as_text(text).replace(old, new),
        "split": lambda separator, text: as_text(text).split(separator),
        "tobool": as_bool,
        "tonumber": as_number,
        "tostring": as_text,
        "trimspace": lambda text: as_text(text).strip(),
        "upper": lambda text: as_text(text).upper(),
    }
)
