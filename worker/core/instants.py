"""Points in time between people and machines: RFC 3339 text and Unix milliseconds.

Knows nothing of clocks; it only converts.
"""

from datetime import UTC, datetime


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
    instant = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry_time_ms(entry_id: str) -> int:
    """Unix milliseconds at which Redis gave an entry its ID; 0 for an ID of the producer's own making."""
    head = entry_id.partition("-")[0]
    return int(head) if head.isdigit() else 0
