"""Go duration strings ("300ms", "1h30m") to nanoseconds, with Go's words for the mistakes.

Knows nothing of what the durations are for.
"""

import re
from decimal import Decimal

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def parse_duration(text: str) -> int:
    """Return the nanoseconds of a Go duration string.

    Args:
        text: signed decimal numbers with a unit each, "h", "m", "s", "ms", "us" or "ns"; "0" alone
            needs no unit.

    Raises:
        ValueError: with the message of Go's time.ParseDuration.
    """
    quoted = '"' + text.replace('"', '\\"') + '"'
    unsigned = text[1:] if text[:1] in {"+", "-"} else text
    if unsigned == "0":
        return 0
    total = Decimal(0)
    position = 0
    while position < len(unsigned):
        part = _PART.match(unsigned, position)
        if part is None:
            break
        number, unit = part.groups()
        if not unit:
            msg = f"time: missing unit in duration {quoted}"
            raise ValueError(msg)
        if unit not in _NANOSECONDS:
            msg = f'time: unknown unit "{unit}" in duration {quoted}'
            raise ValueError(msg)
        total += Decimal(number) * _NANOSECONDS[unit]
        position = part.end()
    if not unsigned or position < len(unsigned):
        msg = f"time: invalid duration {quoted}"
        raise ValueError(msg)
    return int(-total if text.startswith("-") else total)
