"""Options read as Go's `flag` package reads them, so that what works with `nomad job dispatch` works here.

Values in, values out. One liberty: options may also follow the arguments.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0)")
_LARGEST = 2**63 - 1


class Kind(Enum):
    """What an option takes."""

    SWITCH = "switch"
    TEXT = "text"
    INTEGER = "integer"


class FlagFault(Exception):
    """The words cannot be read; the text is the one Go gives."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What the words said."""

    values: tuple[tuple[str, str], ...]
    """Options with their values, in order; a switch that is on has the value `true`."""
    arguments: tuple[str, ...]


def read_flags(words: Iterable[str], kinds: Mapping[str, Kind]) -> Flags:
    """Read the words of a command line.

    Args:
        words: as the shell gave them.
        kinds: the options by name, without dashes.

    Raises:
        FlagFault.
    """
    rest = list(words)
    values: list[tuple[str, str]] = []
    arguments: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            continue
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            message = f"bad flag syntax: {word}"
            raise FlagFault(message)
        kind = kinds.get(name)
        if kind is None:
            message = f"flag provided but not defined: -{name}"
            raise FlagFault(message)
        if kind is Kind.SWITCH:
            if _switch(name, value if equals else "true"):
                values.append((name, "true"))
            else:
                values = [one for one in values if one[0] != name]
            continue
        if not equals:
            if not rest:
                message = f"flag needs an argument: -{name}"
                raise FlagFault(message)
            value = rest.pop(0)
        values.append((name, _integer(name, value) if kind is Kind.INTEGER else value))
    return Flags(tuple(values), tuple(arguments))


def _switch(name: str, value: str) -> bool:
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    message = f'invalid boolean value "{value}" for -{name}: parse error'
    raise FlagFault(message)


def _integer(name: str, value: str) -> str:
    if not _INTEGER.fullmatch(value):
        message = f'invalid value "{value}" for flag -{name}: parse error'
        raise FlagFault(message)
    # Go's octal numbers may do without the "o".
    number = int(re.sub(r"^([+-]?0)(?=[0-7])", r"\1o", value), 0)
    if abs(number) > _LARGEST:
        message = f'invalid value "{value}" for flag -{name}: value out of range'
        raise FlagFault(message)
    return str(number)
