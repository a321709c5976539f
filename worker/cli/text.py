"""Small forms of text that several commands read and print: tables, durations, ages.

Knows nothing of what is in them.
"""

import re
from collections.abc import Sequence

import typer

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines below their headings; the last column may be of any length."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `2h`, `7d`, `1w`.

    Raises:
        typer.BadParameter: not of that form.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        message = f"{text!r} is no duration: give seconds, or a number with s, m, h, d or w, such as 15m"
        raise typer.BadParameter(message)
    return float(found[1]) * _UNITS[found[2] or "s"]


def age(seconds: float | None) -> str:
    """A duration for people, in its largest unit: `42s`, `15m`, `3h`, `7d`; `?` when it is unknown."""
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def count(number: int | None) -> str:
    """A number, or `?` when it is unknown."""
    return "?" if number is None else f"{number:,}"


def one_line(text: str, length: int = 80) -> str:
    """The text on one line, cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
