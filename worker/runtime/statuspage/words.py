"""Numbers and times as people read them.

Knows nothing of the page they stand on.
"""

from worker.core.instants import format_rfc3339

UNKNOWN = "unknown"

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def duration(seconds: float | None) -> str:
    """`40 ms`, `2.5 s`, `12 s`, `3 min 05 s`, `2 h 07 min`, `4 d 03 h`."""
    if seconds is None:
        return UNKNOWN
    whole = int(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 10:  # noqa: PLR2004 - one digit more where it is still worth reading
        return f"{seconds:.1f} s"
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02d} h"


def count(number: int | None) -> str:
    """`12,345`; None is unknown, which is not 0."""
    return UNKNOWN if number is None else f"{number:,}"


def clock(unix_ms: int, *, exact: bool = False) -> str:
    """`2026-11-24 01:48:02 UTC`, exactly `2026-11-24 01:48:02.123`; `never` for 0."""
    if not unix_ms:
        return "never"
    text = format_rfc3339(unix_ms).replace("T", " ")
    return text[:23] if exact else f"{text[:19]} UTC"
