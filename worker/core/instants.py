"""Points in time between people and machines: RFC 3339 text and Unix milliseconds.

Knows nothing of clocks; it only converts.
"""

from datetime import UTC, datetime
from functools import lru_cache


def parse_rfc3339(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time with an offset, e.g. `2026-11-24T01:48:02Z`.

    Raises:
        ValueError: not such a time, or without an offset.
    """
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        message = "the time has no offset; end it with Z or +hh:mm"
        raise ValueError(message)
    return round(instant.timestamp() * 1000)


def format_rfc3339(unix_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, e.g. `2026-11-24T01:48:02.123Z`."""
    seconds, milliseconds = divmod(unix_ms, 1_000)
    return f"{_to_the_second(seconds)}.{milliseconds:03d}Z"


def format_rfc3339_us(unix_us: int) -> str:
    """RFC 3339 in UTC with microseconds, e.g. `2026-11-24T01:48:02.123456Z`."""
    seconds, microseconds = divmod(unix_us, 1_000_000)
    return f"{_to_the_second(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=256)
def _to_the_second(unix_seconds: int) -> str:
    """Kept, for most times that are written lie in the last few seconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat()[:-6]


def entry_time_ms(entry_id: str) -> int:
    """Unix milliseconds at which Redis gave an entry its ID; 0 for an ID of the producer's own making."""
    head = entry_id.partition("-")[0]
    return int(head) if head.isdigit() else 0
