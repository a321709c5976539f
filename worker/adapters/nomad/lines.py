"""Cuts a stream of bytes into lines, and lets no line grow without bound.

Knows nothing of what a line says.
"""

from dataclasses import dataclass

KEPT_BYTES = 64
"""Kept of both ends of a line that is too long: a frame's index stands at one of them."""


@dataclass(frozen=True, slots=True)
class Oversize:
    """A line longer than the limit. Its middle was not kept."""

    head: bytes
    tail: bytes


class LineCutter:
    """Assembles lines from chunks, in time linear in the bytes seen.

    Args:
        limit_bytes: the longest line that is kept, its end not counted; at least KEPT_BYTES.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes | Oversize]:
        """The lines that this chunk ends, without their ends and without empty ones."""
        *ended, rest = chunk.split(b"\n")
        lines: list[bytes | Oversize] = []
        for part in ended:
            line: bytes | Oversize = part
            if self._size or len(part) > self._limit_bytes:
                self._add(part)
                line = self._take()
            if line:
                lines.append(line)
        if rest:
            self._add(rest)
        return lines

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._dropping:
            self._tail = (self._tail + part[-KEPT_BYTES:])[-KEPT_BYTES:]
            return
        self._parts.append(part)
        if self._size > self._limit_bytes:
            whole = b"".join(self._parts)
            self._head, self._tail = whole[:KEPT_BYTES], whole[-KEPT_BYTES:]
            self._parts.clear()
            self._dropping = True

    def _take(self) -> bytes | Oversize:
        line = Oversize(self._head, self._tail) if self._dropping else b"".join(self._parts)
        self._parts.clear()
        self._size, self._dropping = 0, False
        return line
